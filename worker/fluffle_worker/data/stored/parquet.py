"""Parquet: row group by row group, and only the columns that are wanted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluffle.errors import TaskError
from fluffle.storage import StoredFile
from fluffle.task import Site
from fluffle_worker.data.stored.opening import Files
from fluffle_worker.data.stored.sharding import row_ranges, whole_units
from fluffle_worker.data.stored.source import BLOCK_BYTES, Part, RowForm, Wanted
from fluffle_worker.data.stored.table import (
    Columns,
    TableBlock,
    columns_of,
    common_layout,
    labelled,
    layout_of,
    rows_in,
)

# A row group up to this size is read in one piece for each column; of a larger one, so much at a time.
WHOLE_GROUP_BYTES = 64 << 20


def columns_in(files: Files, file: StoredFile) -> Columns:
    """Return the columns of one file by name."""
    with files.open(file) as stream, _readable(file):
        return columns_of(pq.read_schema(stream), file.url)


class ParquetSource:
    """The row groups that a site reads of Parquet files."""

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        self._files = files
        self._footers: dict[str, Any] = {}
        self.parts = self._divided(found, shard)
        if not self.parts:
            if shard.count == 1:
                raise TaskError(f"{files.location.url} has no row: put the data there first")
            raise TaskError(
                f"site {shard.index} of {shard.count} gets no row of {files.location.url}: there are fewer "
                "rows than sites"
            )
        used = list(dict.fromkeys(part.file for part in self.parts))
        columns = [columns_of(self._footer(file).schema.to_arrow_schema(), file.url) for file in used]
        self.layout = layout_of(columns[0], wanted, used[0].url)
        for file, each in zip(used[1:], columns[1:], strict=True):
            self.layout = common_layout(self.layout, each, wanted, files=(used[0].url, file.url))
        if not self.layout.is_known:
            with self._batches(self.parts[0], 1024) as batches:
                self.layout = self.layout.with_lengths(next(batches), used[0].url)

    @property
    def form(self) -> RowForm:
        """What a row becomes."""
        return self.layout.form

    def blocks(self, part: Part) -> Iterator[TableBlock]:
        """Read the rows of a part of a row group."""
        left, to_skip = part.rows or 0, part.begin
        with self._batches(part, rows_in(self.form.row_bytes, BLOCK_BYTES)) as batches:
            for batch in batches:
                rows = batch.slice(to_skip, left)
                to_skip = max(0, to_skip - len(batch))
                left -= len(rows)
                if len(rows):
                    yield TableBlock(self.layout, labelled(rows, self.layout), part.file.url)
                if not left:
                    break

    @contextmanager
    def _batches(self, part: Part, rows: int) -> Iterator[Iterator[pa.RecordBatch]]:
        footer = self._footer(part.file)
        is_small = footer.row_group(part.group).total_byte_size <= WHOLE_GROUP_BYTES
        buffer_bytes = 0 if is_small else max(1 << 20, WHOLE_GROUP_BYTES // len(self.layout.names))
        with self._files.open(part.file) as stream, _readable(part.file):
            file = pq.ParquetFile(stream, metadata=footer, buffer_size=buffer_bytes, pre_buffer=is_small)
            yield file.iter_batches(rows, row_groups=[part.group], columns=self.layout.names)

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
        footer = self._footer(file)
        groups = range(footer.num_row_groups)
        return [Part(file, at, 0, rows) for at in groups if (rows := footer.row_group(at).num_rows)]

    def _footer(self, file: StoredFile) -> Any:
        if file.path not in self._footers:
            with self._files.open(file) as stream, _readable(file):
                self._footers[file.path] = pq.read_metadata(stream)
        return self._footers[file.path]


@contextmanager
def _readable(file: StoredFile) -> Iterator[None]:
    """Convert what pyarrow raises about the content of a file to a TaskError."""
    try:
        yield
    except pa.ArrowException as error:
        raise TaskError(f"{file.url} is no readable Parquet file: write it again ({error})") from error
