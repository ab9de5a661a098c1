"""CSV: columns by name, separated by commas, the numbers read straight as float32."""

import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from fluffle.errors import TaskError
from fluffle.storage import StoredFile
from fluffle.task import Site
from fluffle_worker.data.stored.opening import Files
from fluffle_worker.data.stored.sharding import whole_units
from fluffle_worker.data.stored.source import BLOCK_BYTES, Part, RowForm, Wanted, too_large_for_float32
from fluffle_worker.data.stored.table import (
    Columns,
    TableBlock,
    columns_of,
    common_layout_of,
)

# What the types of the columns are guessed from.
FIRST_BYTES = 1 << 20
# What Excel begins "Unicode text" with.
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A quotation mark that nothing closes for so long is no beginning of a value with line breaks.
LONGEST_VALUE_BYTES = 8 << 20
BAD_VALUE = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to (\w+): invalid value '(.*)'", re.DOTALL
)


def columns_in(files: Files, found: Sequence[StoredFile]) -> Columns:
    """Return the columns of the first file by name, as its first rows look, or of the first that has rows."""
    for file in _with_content(files, found):
        columns = columns_of(_text_for_binary(_schema(files, file)), file.url)
        if not all(column.is_null for column in columns.values()):
            break
    return columns


class CsvSource:
    """The rows that a site reads of CSV files, which may be compressed (.csv.gz)."""

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        self._files = files
        self._types: dict[str, dict[str, Any]] = {}
        found = _with_content(files, found)
        own = whole_units([file.size_bytes for file in found], index=shard.index, count=shard.count)
        if own is not None:
            self.parts = [Part(found[unit]) for unit in own]
        else:
            # Nobody knows how many rows a file has, so the sites take them in turns.
            self.parts = [Part(file, begin=shard.index, step=shard.count) for file in found]
        read = {part.file for part in self.parts}
        self.layout = common_layout_of(found, read, partial(self._columns, wanted=wanted), wanted)

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
                for rows, require_infinite in self._read(part.file, pieces):
                    kept = rows
                    if part.step > 1:
                        kept = rows.take(pa.array(range(to_skip, len(rows), part.step), pa.int64()))
                        to_skip = (to_skip - len(rows)) % part.step
                    if len(kept):
                        yield TableBlock.of(self.layout, kept, part.file.url, require_infinite)

    def _read(
        self, file: StoredFile, pieces: Iterator[bytes]
    ) -> Iterator[tuple[pa.RecordBatch, Callable[[], None]]]:
        """Yield rows, each time with what raises TaskError unless infinity is what the file says there."""
        types = self._types_to_read(file)
        options = csv.ConvertOptions(include_columns=self.layout.names, column_types=types)
        names: list[str] | None = None
        for piece in pieces:
            require_infinite = partial(_require_infinite, piece, names, types, file.url)
            table = _with_missing_texts(_parsed(piece, names, options))
            names = list(self._types[file.path])
            for rows in table.combine_chunks().to_batches():
                yield rows, require_infinite

    def _types_to_read(self, file: StoredFile) -> dict[str, Any]:
        guessed = self._types[file.path]
        types = dict.fromkeys((column.name for column in self.layout.features), pa.float32())
        if label := self.layout.label:
            number = pa.int64() if label.is_whole else pa.float32()
            types[label.name] = number if label.kind == "number" else pa.string()
        elsewhere = {column.name: column.said for column in self.layout.columns}
        for name in types:
            said = elsewhere[name] if pa.types.is_null(guessed[name]) else str(guessed[name])
            # The word false is no number.
            if said == "bool":
                types[name] = pa.bool_()
        return types

    def _columns(self, file: StoredFile, wanted: Wanted) -> Columns:
        schema = _schema(self._files, file)
        self._types[file.path] = {field.name: field.type for field in schema}
        is_used = {*(wanted.columns or schema.names), wanted.label}
        if any(pa.types.is_binary(field.type) and field.name in is_used for field in schema):
            raise _not_utf8(file)
        return columns_of(_text_for_binary(schema), file.url)


def _with_content(files: Files, found: Sequence[StoredFile]) -> list[StoredFile]:
    with_content = [file for file in found if file.size_bytes]
    if not with_content:
        raise TaskError(_nothing_in(files.location.url))
    return with_content


def _with_missing_texts(table: pa.Table) -> pa.Table:
    """Return a table whose empty texts are null: other words may be names, as NA is for North America."""
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and pc.any(is_empty := pc.equal(table[at], "")).as_py():
            table = table.set_column(at, field, pc.if_else(is_empty, pa.scalar(None, pa.string()), table[at]))
    return table


def _require_infinite(piece: bytes, names: list[str] | None, types: Mapping[str, Any], file: str) -> None:
    """Raise TaskError for a number that float32 cannot hold, which pyarrow reads as infinity."""
    floats = [name for name, given in types.items() if pa.types.is_floating(given)]
    as_text = csv.ConvertOptions(include_columns=floats, column_types=dict.fromkeys(floats, pa.string()))
    numbers = csv.ConvertOptions(include_columns=floats, column_types=types)
    said, read = _parsed(piece, names, as_text), _parsed(piece, names, numbers)
    for name in floats:
        for value in said[name].filter(pc.is_inf(read[name])).to_pylist():
            if "inf" not in value.lower():
                raise too_large_for_float32(value[:40], f"the column {name!r} of {file}")


def _text_for_binary(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a file whose texts are not UTF-8 as if they were: pyarrow calls them binary."""
    return pa.schema(
        [field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in schema]
    )


def _nothing_in(url: str) -> str:
    return f"{url} is empty: put the data there first"


def _not_utf8(file: StoredFile) -> TaskError:
    return TaskError(
        f"{file.url} is not written in UTF-8: save it as UTF-8, in Excel as 'CSV UTF-8 (comma delimited)'"
    )


def _schema(files: Files, file: StoredFile) -> pa.Schema:
    """Guess what the columns of a file hold from its first rows."""
    with _pieces(files, file, FIRST_BYTES, []) as pieces:
        head = next(pieces, b"")
        if head.startswith(UTF_16) or b"\0" in head:
            raise _not_utf8(file)
        schema = _parsed(head, None, csv.ConvertOptions()).schema
    try:
        _ = schema.names
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
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
            if "invalid UTF8" in str(error):
                raise _not_utf8(file) from error
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
    if "Empty CSV file" in said:
        return _nothing_in(file.url)
    shown = " ".join(said.split())[:200]
    return f"{file.url} is no readable CSV file with the columns' names in its first line: {shown}"
