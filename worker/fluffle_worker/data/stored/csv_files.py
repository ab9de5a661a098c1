"""CSV: columns by name, separated by commas, the numbers read straight as float32."""

import gzip
import re
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
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
    layout_of,
)

# What the types of the columns are guessed from.
FIRST_BYTES = 1 << 20
# A quotation mark that nothing closes for so long is no beginning of a value with line breaks.
LONGEST_VALUE_BYTES = 8 << 20
BAD_VALUE = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to (\w+): invalid value '(.*)'", re.DOTALL
)


def columns_in(files: Files, file: StoredFile) -> Columns:
    """Return the columns of one file by name, as its first rows look."""
    return columns_of(_schema(files, file), file.url)


class CsvSource:
    """The rows that a site reads of CSV files, which may be compressed (.csv.gz)."""

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        self._files = files
        self._types: dict[str, dict[str, Any]] = {}
        found = [file for file in found if file.size_bytes]
        if not found:
            raise TaskError(f"{files.location.url} is empty: put the data there first")
        own = whole_units([file.size_bytes for file in found], index=shard.index, count=shard.count)
        if own is not None:
            self.parts = [Part(found[unit]) for unit in own]
        else:
            # Nobody knows how many rows a file has, so the sites take them in turns.
            self.parts = [Part(file, begin=shard.index, step=shard.count) for file in found]
        first = self.parts[0].file
        self.layout = layout_of(self._columns(first), wanted, first.url)
        for part in self.parts[1:]:
            names = (first.url, part.file.url)
            self.layout = common_layout(self.layout, self._columns(part.file), wanted, files=names)

    @property
    def form(self) -> RowForm:
        """What a row becomes."""
        return self.layout.form

    def blocks(self, parts: Iterable[Part]) -> Generator[TableBlock, None, None]:
        """Read the rows of some files, or every so-manieth of them."""
        for part in parts:
            names = list(self._types[part.file.path])
            with _pieces(self._files, part.file, BLOCK_BYTES, names) as pieces:
                to_skip = part.begin
                for rows in self._read(part.file, pieces):
                    kept = rows
                    if part.step > 1:
                        kept = rows.take(pa.array(range(to_skip, len(rows), part.step), pa.int64()))
                        to_skip = (to_skip - len(rows)) % part.step
                    if len(kept):
                        yield TableBlock.of(self.layout, kept, part.file.url)

    def _read(self, file: StoredFile, pieces: Iterator[bytes]) -> Iterator[pa.RecordBatch]:
        options = csv.ConvertOptions(
            include_columns=self.layout.names,
            column_types=self._types_to_read(file),
            strings_can_be_null=True,
        )
        names: list[str] | None = None
        for piece in pieces:
            table = _parsed(piece, names, options)
            names = list(self._types[file.path])
            yield from table.combine_chunks().to_batches()

    def _types_to_read(self, file: StoredFile) -> dict[str, Any]:
        guessed = self._types[file.path]
        types = dict.fromkeys((column.name for column in self.layout.features), pa.float32())
        if label := self.layout.label:
            number = pa.int64() if label.is_whole else pa.float32()
            types[label.name] = number if label.kind == "number" else pa.string()
        # The word false is no number.
        return types | {name: pa.bool_() for name in types if pa.types.is_boolean(guessed[name])}

    def _columns(self, file: StoredFile) -> Columns:
        schema = _schema(self._files, file)
        self._types[file.path] = {field.name: field.type for field in schema}
        return columns_of(schema, file.url)


def _schema(files: Files, file: StoredFile) -> pa.Schema:
    """Guess what the columns of a file hold from its first rows."""
    with _pieces(files, file, FIRST_BYTES, []) as pieces:
        schema = _parsed(next(pieces, b""), None, csv.ConvertOptions()).schema
    if len(schema) == 1 and (other := next((each for each in ";\t|" if each in schema.names[0]), None)):
        raise TaskError(f"the columns of {file.url} are separated by {other!r}: write it again with commas")
    return schema


@contextmanager
def _pieces(files: Files, file: StoredFile, piece_bytes: int, names: list[str]) -> Iterator[Iterator[bytes]]:
    """Yield the text in pieces of whole rows. Raises TaskError for what is wrong with them."""
    with files.open(file) as stream:
        is_compressed = file.path.lower().endswith(".gz")
        try:
            yield _whole_rows(gzip.GzipFile(fileobj=stream) if is_compressed else stream, piece_bytes)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise TaskError(f"{file.url} is no readable gzip file: write it again ({error})") from error
        except pa.ArrowException as error:
            raise TaskError(_what_is_wrong(str(error), file, names)) from error


def _parsed(piece: bytes, names: list[str] | None, options: Any) -> pa.Table:
    """Return the rows of a piece; its first line has the names, unless they are given."""
    return csv.read_csv(
        pa.BufferReader(piece),
        # Without pyarrow's threads, see `fluffle_worker.data.stored.fetched`.
        csv.ReadOptions(column_names=names, use_threads=False),
        csv.ParseOptions(newlines_in_values=True),
        options,
    )


def _whole_rows(stream: Any, piece_bytes: int) -> Iterator[bytes]:
    """Yield a text in pieces that end where a row ends."""
    rest = b""
    while read := stream.read(piece_bytes):
        text = rest + read
        end = _end_of_rows(text)
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def _end_of_rows(text: bytes) -> int:
    """Return where the last whole row of a text ends; 0 if nowhere. Line breaks inside quotes end no row."""
    last = text.rfind(b"\n") + 1
    end, quotes = last, text.count(b'"', 0, last)
    while quotes % 2:
        before = text.rfind(b"\n", 0, end - 1) + 1
        if last - before > LONGEST_VALUE_BYTES:
            return last
        if not before:
            return 0
        quotes -= text.count(b'"', before, end)
        end = before
    return end


def _what_is_wrong(said: str, file: StoredFile, names: list[str]) -> str:
    if (bad := BAD_VALUE.search(said)) and names:
        column, value = names[int(bad[1])], bad[3][:40]
        if bad[2] == "int64":
            return (
                f"the column {column!r} of {file.url} holds {value!r}, and whole numbers before: number the "
                "classes from 0, or write the first rows of targets with a point, as in 3.0"
            )
        return (
            f"the column {column!r} of {file.url} holds text such as {value!r} where numbers are expected: "
            "leave the cell empty where a value is missing, or name the other columns with columns="
        )
    shown = " ".join(said.split())[:200]
    return f"{file.url} is no readable CSV file with the columns' names in its first line: {shown}"
