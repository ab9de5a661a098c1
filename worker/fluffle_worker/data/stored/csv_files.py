"""CSV: columns by name, separated by commas, the numbers read straight as float32."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import csv

from fluffle.errors import TaskError
from fluffle.storage import StoredFile
from fluffle.task import Site
from fluffle_worker.data.stored.opening import Files
from fluffle_worker.data.stored.sharding import whole_units
from fluffle_worker.data.stored.source import BLOCK_BYTES, Part, RowForm, Wanted
from fluffle_worker.data.stored.table import (
    Columns,
    TableBlock,
    columns_of,
    common_layout,
    labelled,
    layout_of,
)

# What the types of the columns are guessed from.
FIRST_BYTES = 1 << 20
BAD_VALUE = re.compile(r"In CSV column #(\d+): CSV conversion error to \w+: invalid value '(.*)'", re.DOTALL)


def columns_in(files: Files, file: StoredFile) -> Columns:
    """Return the columns of one file by name, as its first rows look."""
    return _columns(files, file)[1]


class CsvSource:
    """The rows that a site reads of CSV files, which may be compressed (.csv.gz)."""

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        self._files = files
        own = whole_units([file.size_bytes for file in found], index=shard.index, count=shard.count)
        if own is not None:
            self.parts = [Part(found[unit]) for unit in own]
        else:
            # Nobody knows how many rows a file has, so the sites take them in turns.
            self.parts = [Part(file, begin=shard.index, step=shard.count) for file in found]
        self.parts = [part for part in self.parts if part.file.size_bytes]
        if not self.parts:
            raise TaskError(f"{files.location.url} is empty: put the data there first")
        found_in = [_columns(files, part.file) for part in self.parts]
        self._schemas = {
            part.file.path: schema for part, (schema, _) in zip(self.parts, found_in, strict=True)
        }
        columns = [each for _, each in found_in]
        first = self.parts[0].file
        self.layout = layout_of(columns[0], wanted, first.url)
        for part, each in zip(self.parts[1:], columns[1:], strict=True):
            self.layout = common_layout(self.layout, each, wanted, files=(first.url, part.file.url))

    @property
    def form(self) -> RowForm:
        """What a row becomes."""
        return self.layout.form

    def blocks(self, part: Part) -> Iterator[TableBlock]:
        """Read the rows of a file, or every so-manieth of them."""
        to_skip = part.begin
        layout = self.layout
        types = {column.name: pa.float32() for column in layout.features}
        # Read as what they were guessed to be: false is no number.
        schema = self._schemas[part.file.path]
        types |= {name: pa.bool_() for name in types if pa.types.is_boolean(schema.field(name).type)}
        if layout.label and layout.label.kind == "number":
            types[layout.label.name] = pa.int64() if layout.label.is_whole else pa.float32()
            if pa.types.is_boolean(schema.field(layout.label.name).type):
                types[layout.label.name] = pa.bool_()
        elif layout.label:
            types[layout.label.name] = pa.string()
        options = csv.ConvertOptions(
            include_columns=layout.names, column_types=types, strings_can_be_null=True
        )
        with _reader(self._files, part.file, options, BLOCK_BYTES, schema.names) as reader:
            for batch in reader:
                rows = batch
                if part.step > 1:
                    rows = batch.take(pa.array(range(to_skip, len(batch), part.step), pa.int64()))
                    to_skip = (to_skip - len(batch)) % part.step
                if len(rows):
                    yield TableBlock(layout, labelled(rows, layout), part.file.url)


def _columns(files: Files, file: StoredFile) -> tuple[Any, Columns]:
    """Guess what the columns of a file hold from its first rows: their types, and what they are."""
    with _reader(files, file, csv.ConvertOptions(), FIRST_BYTES, []) as reader:
        schema = reader.schema
    columns = columns_of(schema, file.url)
    if len(schema) == 1 and (other := next((each for each in ";\t|" if each in schema.names[0]), None)):
        raise TaskError(f"the columns of {file.url} are separated by {other!r}: write it again with commas")
    return schema, columns


@contextmanager
def _reader(
    files: Files, file: StoredFile, options: Any, block_bytes: int, names: Sequence[str]
) -> Iterator[Any]:
    with files.open(file) as stream, _readable(file, names):
        is_compressed = file.path.lower().endswith(".gz")
        with csv.open_csv(
            pa.CompressedInputStream(stream, "gzip") if is_compressed else stream,
            read_options=csv.ReadOptions(block_size=block_bytes),
            # Without this, a line break inside quotes splits a row where a block ends.
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=options,
        ) as reader:
            yield reader


@contextmanager
def _readable(file: StoredFile, names: Sequence[str]) -> Iterator[None]:
    """Convert what pyarrow raises about the content of a file to a TaskError."""
    try:
        yield
    except pa.ArrowException as error:
        if (bad := BAD_VALUE.search(str(error))) and names:
            raise TaskError(
                f"the column {names[int(bad[1])]!r} of {file.url} holds text such as {bad[2][:40]!r} where "
                "numbers are expected: leave the cell empty where a value is missing, or name the other "
                "columns with columns="
            ) from error
        said = " ".join(str(error).split())[:200]
        raise TaskError(
            f"{file.url} is no readable CSV file with the columns' names in its first line: {said}"
        ) from error
