"""The bytes of a row group in memory, at the places where Parquet's footer says that they are.

pyarrow would read through Python from threads of its own, and a process that ends soon after hangs or is
aborted (apache/arrow#34314, #50482). So files behind such a filesystem are read here, in a few large pieces,
and decoded in memory, without pyarrow's threads.
"""

import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

# Two column chunks that are no further apart are read together.
GAP_BYTES = 1 << 16
PIECE_BYTES = 8 << 20
# A mapping as long as the file, of which only what is read takes memory. Python 3.11 has no name for that.
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


def fetch(stream: Any, group: Any, names: Sequence[str], size_bytes: int) -> pa.BufferReader | None:
    """Read the named columns of a row group, and return a file that holds nothing else.

    None where the system grants no memory that is not used, so that pyarrow must read the file itself.
    """
    try:
        memory = mmap.mmap(-1, size_bytes, flags=FLAGS)
    except OSError:
        return None
    view = memoryview(memory)
    for begin, end in _ranges(group, names):
        for at in range(begin, end, PIECE_BYTES):
            stream.seek(at)
            piece = view[at : min(at + PIECE_BYTES, end)]
            if stream.readinto(piece) != len(piece):
                raise OSError("the file ends too early")
    return pa.BufferReader(pa.py_buffer(memory))


def group_bytes(group: Any, names: Sequence[str]) -> int:
    """Return how many bytes the named columns of a row group have in the file."""
    return sum(end - begin for begin, end in _ranges(group, names))


def _ranges(group: Any, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of the named columns begin and end, neighbours as one."""
    chunks = (group.column(at) for at in range(group.num_columns))
    wanted = set(names)
    places = []
    for chunk in chunks:
        path = chunk.path_in_schema
        # A list's numbers are at NAME.list.element, and a name may have points itself.
        if path in wanted or any(path.startswith(f"{name}.") for name in wanted):
            begin = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
            places.append((begin, begin + chunk.total_compressed_size))
    together: list[int] = []
    for begin, end in sorted(places):
        if together and begin - together[1] <= GAP_BYTES:
            together[1] = max(end, together[1])
            continue
        if together:
            yield together[0], together[1]
        together = [begin, end]
    if together:
        yield together[0], together[1]
