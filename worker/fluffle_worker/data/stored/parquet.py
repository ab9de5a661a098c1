"""Parquet: row group by row group, and only the columns that are wanted."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluffle.errors import TaskError
from fluffle.storage import StoredFile
from fluffle.task import Site
from fluffle_worker.data.stored.fetched import fetch, group_bytes
from fluffle_worker.data.stored.opening import Files
from fluffle_worker.data.stored.prefetch import ahead_of
from fluffle_worker.data.stored.sharding import row_ranges, whole_units
from fluffle_worker.data.stored.source import BLOCK_BYTES, Part, RowForm, Wanted
from fluffle_worker.data.stored.table import (
    Columns,
    TableBlock,
    columns_of,
    common_layout_of,
    rows_in,
)

# A row group up to this size is read in one go, of a larger one so much at a time: of all columns together,
# but not less of one than pays for a request.
WHOLE_GROUP_BYTES = 80 << 20
LEAST_BYTES = 256 << 10


def columns_in(files: Files, found: Sequence[StoredFile]) -> Columns:
    """Return the columns of the first file by name, or of the first that has rows."""
    footers = _Footers(files)
    file = next(footers.with_rows(found), found[0])
    return footers.columns(file)


class ParquetSource:
    """The row groups that a site reads of Parquet files."""

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        self._files = files
        self._footers = _Footers(files)
        self.parts = self._divided(found, shard)
        if not self.parts:
            if shard.count == 1:
                raise TaskError(f"{files.location.url} has no row: put the data there first")
            raise TaskError(
                f"site {shard.index} of {shard.count} gets no row of {files.location.url}: there are fewer "
                "rows than sites"
            )
        own = {part.file for part in self.parts}
        with_rows = self._footers.with_rows
        self.layout = common_layout_of(with_rows(found), own, self._footers.columns, wanted)
        if not self.layout.is_known:
            first = self._groups(next(with_rows(found)))[0]
            with _readable(first.file), self._batches(first, self._fetched(first), 1024) as batches:
                self.layout = self.layout.with_lengths(next(batches), first.file.url)

    @property
    def form(self) -> RowForm:
        """What a row becomes."""
        return self.layout.form

    def blocks(self, parts: Iterable[Part]) -> Generator[TableBlock, None, None]:
        """Read the rows of some row groups, or of parts of them."""
        with ThreadPoolExecutor(1, "fluffle-fetch") as pool:
            for part, memory in ahead_of(pool, 1, self._fetched, parts):
                with _readable(part.file):
                    yield from self._blocks_of(part, memory)

    def _blocks_of(self, part: Part, memory: Any) -> Iterator[TableBlock]:
        left, to_skip = part.rows or 0, part.begin
        with self._batches(part, memory, rows_in(self.form.row_bytes, BLOCK_BYTES)) as batches:
            for batch in batches:
                rows = batch.slice(to_skip, left)
                to_skip = max(0, to_skip - len(batch))
                left -= len(rows)
                if len(rows):
                    yield TableBlock.of(self.layout, rows, part.file.url)
                if not left:
                    break

    @contextmanager
    def _batches(self, part: Part, memory: Any, rows: int) -> Iterator[Iterator[pa.RecordBatch]]:
        footer, names = self._footers.of(part.file), self.layout.names
        groups = [part.group]
        if memory is not None:
            file = pq.ParquetFile(memory, metadata=footer)
            yield file.iter_batches(rows, groups, names, use_threads=False)
            return
        is_small = self._bytes_of(part) <= WHOLE_GROUP_BYTES
        buffer_bytes = 0 if is_small else max(LEAST_BYTES, WHOLE_GROUP_BYTES // len(names))
        is_ours = self._files.is_read_through_python(part.file)
        with self._files.open(part.file) as stream:
            file = pq.ParquetFile(
                stream, metadata=footer, buffer_size=buffer_bytes, pre_buffer=is_small and not is_ours
            )
            yield file.iter_batches(rows, groups, names, use_threads=not is_ours)

    def _fetched(self, part: Part) -> Any:
        """Return a small row group in memory, where pyarrow should not read it itself; else None."""
        is_small = self._bytes_of(part) <= WHOLE_GROUP_BYTES
        if not (is_small and self._files.is_read_through_python(part.file)):
            return None
        group = self._footers.of(part.file).row_group(part.group)
        with self._files.open(part.file) as stream:
            return fetch(stream, group, self.layout.names, part.file.size_bytes)

    def _bytes_of(self, part: Part) -> int:
        return group_bytes(self._footers.of(part.file).row_group(part.group), self.layout.names)

    def _divided(self, found: Sequence[StoredFile], shard: Site) -> list[Part]:
        """Return the site's parts: whole files if these balance, or row groups, or else ranges of rows."""
        sizes = [file.size_bytes for file in found]
        own = whole_units(sizes, index=shard.index, count=shard.count)
        if own is not None:
            return [part for unit in own for part in self._groups(found[unit])]
        groups = [part for file in found for part in self._groups(file)]
        rows = [part.rows or 0 for part in groups]
        own = whole_units(rows, index=shard.index, count=shard.count)
        if own is not None:
            return [groups[unit] for unit in own]
        return [
            Part(groups[unit].file, groups[unit].group, begin, end)
            for unit, begin, end in row_ranges(rows, index=shard.index, count=shard.count)
        ]

    def _groups(self, file: StoredFile) -> list[Part]:
        footer = self._footers.of(file)
        groups = range(footer.num_row_groups)
        return [Part(file, at, 0, rows) for at in groups if (rows := footer.row_group(at).num_rows)]


class _Footers:
    """The footers of files, each of which is read once."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._known: dict[str, Any] = {}

    def of(self, file: StoredFile) -> Any:
        if file.path not in self._known:
            with _readable(file), self._files.open(file) as stream:
                self._known[file.path] = pq.read_metadata(stream)
        return self._known[file.path]

    def columns(self, file: StoredFile) -> Columns:
        return columns_of(self.of(file).schema.to_arrow_schema(), file.url)

    def with_rows(self, found: Iterable[StoredFile]) -> Iterator[StoredFile]:
        return (file for file in found if self.of(file).num_rows)


@contextmanager
def _readable(file: StoredFile) -> Iterator[None]:
    """Convert what pyarrow raises about the content of a file to a TaskError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise TaskError(f"{file.url} is no readable Parquet file: write it again ({said})") from error
