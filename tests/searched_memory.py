"""Where bytes could be found: in the memory of a process, and in files."""

import re
from collections.abc import Iterator
from pathlib import Path

from federation import Part


def memory_of(part: Part) -> Iterator[bytes]:
    """Yield what a process has in its memory, mapping by mapping."""
    pid = part.process.pid
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is None:
                continue
            start, stop = (int(each, 16) for each in found.groups())
            memory.seek(start)
            try:
                yield memory.read(stop - start)
            except OSError:
                # What the kernel keeps for itself.
                continue


def files_below(folder: Path) -> Iterator[bytes]:
    """Yield what is in the files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes()
