"""Tables of columns as rows for training: which columns are features and which the label, and checks."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fluffle.errors import ConfigError, TaskError
from fluffle.storage import StoredFile
from fluffle_worker.data.stored.columns import UNKNOWN, Column, column_of, dense, in_words, with_length
from fluffle_worker.data.stored.source import CodeLabels, RowForm, Wanted, require_float32

Columns = Mapping[str, Column]
# What a data frame calls its rows, as pandas writes it beside the columns.
INDEX_OF_PANDAS = re.compile(r"__index_level_[0-9]+__")
# So many bytes of rows are filled column by column before the next: they stay in the processor's cache, which
# is five times as fast as filling a whole block.
TILE_BYTES = 512 << 10


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns make the inputs of a row, and which its label.

    One column of lists alone keeps its shape; otherwise all columns stand side by side.
    """

    features: tuple[Column, ...]
    label: Column | None
    classes: tuple[str | int, ...] = ()
    code_labels: CodeLabels | None = None

    @property
    def form(self) -> RowForm:
        """What a row becomes: whole numbers and classes as label are int64, targets float32."""
        row_shape: tuple[int, ...] = (sum(prod(each.shape) for each in self.features),)
        if len(self.features) == 1 and self.features[0].shape:
            row_shape = self.features[0].shape
        names = tuple(each.name for each in self.features)
        label = self.label
        if label is None:
            return RowForm(names, row_shape, None, (), None, ())
        is_class = bool(self.classes) or (label.is_whole and not label.shape and not self.code_labels)
        dtype = np.int64 if is_class else np.float32
        return RowForm(names, row_shape, label.name, label.shape, dtype, self.classes)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns to read."""
        return (*self.features, *([self.label] if self.label else ()))

    @property
    def names(self) -> list[str]:
        """The names of the columns to read."""
        return [each.name for each in self.columns]

    def with_lengths(self, batch: pa.RecordBatch, file: str) -> "Layout":
        """Return the layout with the lengths that lists have in the first rows, where their type has none."""

        def known(column: Column) -> Column:
            return with_length(column, batch.column(column.name), file) if UNKNOWN in column.shape else column

        label = self.label and known(self.label)
        return replace(self, features=tuple(map(known, self.features)), label=label)

    @property
    def is_known(self) -> bool:
        """Whether the length of all lists is known."""
        return not any(UNKNOWN in column.shape for column in self.columns)

    @property
    def is_settled(self) -> bool:
        """Whether no further file can change it, so that a site need not look at those of other sites."""
        may_be_target = self.label is not None and self.form.label_dtype == np.int64 and not self.classes
        return not may_be_target and not any(column.is_null for column in self.columns)


def columns_of(schema: pa.Schema, file: str) -> Columns:
    """Return the columns of a file by name. Raises TaskError when two have one name."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise TaskError(f"{file} has more than one column {twice[0]!r}: give each a name of its own")
    return {each.name: column_of(each) for each in schema if not INDEX_OF_PANDAS.fullmatch(each.name)}


def layout_of(columns: Columns, wanted: Wanted, file: str) -> Layout:
    """Return the layout of a file's rows. Raises TaskError for columns that are missing or cannot be used."""
    if wanted.classes and not wanted.label:
        raise ConfigError("classes= numbers the values of a label: name its column with label=")
    for name in (*(wanted.columns or ()), *([wanted.label] if wanted.label else ())):
        if name not in columns:
            what = "label column" if name == wanted.label else "column"
            found = f"{file} has no {what} {name!r}: it has {in_words(list(columns))}; "
            if f"/{name}=" in file:
                raise TaskError(f"{found}the names of folders are no columns, so write it into the files")
            raise TaskError(f"{found}correct the name")
    names = wanted.columns or tuple(name for name in columns if name != wanted.label)
    if not names:
        raise TaskError(
            f"{file} has no column beside the label {wanted.label!r}: there is nothing to learn from"
        )
    features = tuple(_feature(columns[name], file) for name in names)
    label = None if wanted.label is None else _label(columns[wanted.label], wanted, file)
    return Layout(features, label, wanted.classes, wanted.code_labels)


def _feature(column: Column, file: str) -> Column:
    if column.kind == "number":
        return column
    found = "text" if column.kind == "text" else column.said
    raise TaskError(
        f"the column {column.name!r} of {file} holds {found} where numbers are expected: name the others "
        "with columns=, or turn it into numbers first, such as one 0-or-1 column for each value"
    )


def _label(column: Column, wanted: Wanted, file: str) -> Column:
    if column.is_null:
        # What looks like missing numbers in a CSV file may be names, such as NA for North America.
        is_text = wanted.code_labels is not None or any(isinstance(each, str) for each in wanted.classes)
        return replace(column, kind="text" if is_text else "number", is_whole=bool(wanted.classes))
    if wanted.code_labels:
        return column
    if column.kind == "number" and not (wanted.classes and (column.shape or not column.is_whole)):
        return column
    if column.kind == "text" and not column.shape:
        if wanted.classes:
            return column
        raise TaskError(
            f"the label column {column.name!r} of {file} holds text: name its values with classes=, in one "
            "order for all sites, or number them from 0"
        )
    found = "numbers that are not whole" if column.kind == "number" else column.said
    raise TaskError(
        f"the label column {column.name!r} of {file} holds {found} where a class or a number is expected: "
        "name another column with label="
    )


def common_layout(first: Layout, other: Columns, wanted: Wanted, *, files: tuple[str, str]) -> Layout:
    """Return the layout of two files, of which the first is known. Raises TaskError when they differ."""
    mine, theirs = files
    known = {*first.names}
    if wanted.columns is None and (extra := [name for name in other if name not in known]):
        raise TaskError(
            f"{theirs} has the column {extra[0]!r}, which {mine} does not have: all files must have the same "
            "columns, or name those that all have with columns="
        )
    if missing := [name for name in first.names if name not in other]:
        raise TaskError(
            f"{theirs} has no column {missing[0]!r}, which {mine} has: all files must have the same columns, "
            "or name those that all have with columns="
        )
    for before in first.columns:
        after = other[before.name]
        if before.is_null or after.is_null:
            continue
        if len(before.shape) != len(after.shape) or before.kind != after.kind:
            raise TaskError(
                f"the column {after.name!r} holds {after.said} in {theirs}, and {before.said} in {mine}: "
                "write it in the same way to all files, or leave it out with columns="
            )
    layout = layout_of(other, wanted, theirs)
    features = tuple(_replace_null(before, other[before.name]) for before in first.features)
    label = first.label and layout.label and _replace_null(first.label, layout.label)
    if label and layout.label and not (layout.label.is_whole or layout.label.is_null):
        label = replace(label, is_whole=False)
    return replace(first, features=features, label=label)


def _replace_null(column: Column, other: Column) -> Column:
    """Return what a column of two files holds, of which the first has perhaps no value."""
    return other if column.is_null else column


def common_layout_of(
    found: Iterable[StoredFile],
    own: Collection[StoredFile],
    columns: Callable[[StoredFile], Columns],
    wanted: Wanted,
) -> Layout:
    """Return the layout of a data set, the same at each site: the order of columns is that of the first file.

    `own` are the files that the site reads. Raises TaskError when files differ.
    """
    files = iter(found)
    first = next(files)
    layout = layout_of(columns(first), wanted, first.url)
    for file in files:
        if file in own or not layout.is_settled:
            layout = common_layout(layout, columns(file), wanted, files=(first.url, file.url))
    return layout


@dataclass(frozen=True, slots=True, eq=False)
class TableBlock:
    """Some rows of a table that have a label, which can be written into arrays."""

    layout: Layout
    batch: pa.RecordBatch
    file: str
    left_out: int = 0
    require_infinite: Callable[[], None] | None = None

    @classmethod
    def of(
        cls,
        layout: Layout,
        batch: pa.RecordBatch,
        file: str,
        require_infinite: Callable[[], None] | None = None,
    ) -> "TableBlock":
        """Return a block of these rows without those whose label is null or NaN.

        Of all of them where the caller codes the labels. `require_infinite` is called where the numbers are
        float32 as they are read, and there is infinity among them: it raises TaskError if the file has none.
        """
        if layout.label is None or layout.code_labels:
            return cls(layout, batch, file, 0, require_infinite)
        missing = pc.is_null(batch.column(layout.label.name), nan_is_null=True)
        if not pc.any(missing).as_py():
            return cls(layout, batch, file, 0, require_infinite)
        kept = batch.filter(pc.invert(missing))
        return cls(layout, kept, file, len(batch) - len(kept), require_infinite)

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def write(self, x: NDArray[np.float32], y: NDArray[Any] | None) -> None:
        """Write the inputs into `x` [rows, ...] and the labels into `y` [rows, ...].

        Raises TaskError for a number that is too large for float32.
        """
        try:
            with np.errstate(over="raise"):
                self._write(x, y)
        except FloatingPointError as error:
            self._require_float32()
            raise TaskError(f"{self.file} holds numbers that are too large: {error}") from error

    def _write(self, x: NDArray[np.float32], y: NDArray[Any] | None) -> None:
        flat = x.reshape(len(x), prod(x.shape[1:]))
        columns = [
            dense(self.batch.column(each.name), each, self.file).reshape(len(x), prod(each.shape))
            for each in self.layout.features
        ]
        tile = max(1, TILE_BYTES // (flat.itemsize * flat.shape[1]))
        has_infinity = False
        for begin in range(0, len(x), tile):
            at, rows = 0, flat[begin : begin + tile]
            for column in columns:
                rows[:, at : at + column.shape[1]] = column[begin : begin + tile]
                at += column.shape[1]
            has_infinity |= self.require_infinite is not None and bool(np.isinf(rows).any())
        if self.require_infinite and has_infinity:
            self.require_infinite()
        if y is not None and self.layout.label is not None:
            y[:] = self._labels(self.layout.label)

    def _require_float32(self) -> None:
        """Raise TaskError that names a number too large for float32, where there is one."""
        for column in self.layout.columns:
            if column.kind == "number":
                numbers = dense(self.batch.column(column.name), column, self.file)
                require_float32(numbers, f"the column {column.name!r} of {self.file}")

    def _labels(self, label: Column) -> NDArray[Any]:
        values = self.batch.column(label.name)
        if self.require_infinite and pa.types.is_floating(values.type) and pc.any(pc.is_inf(values)).as_py():
            self.require_infinite()
        if not (self.layout.classes or self.layout.code_labels):
            return dense(values, label, self.file)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if self.layout.code_labels:
            return self.layout.code_labels(values.to_numpy(zero_copy_only=False))
        if pa.types.is_null(values.type):
            return np.empty(0, np.int64)  # rows without a label are left out
        try:
            known = pa.array(self.layout.classes).cast(values.type)
        except pa.ArrowException as error:
            raise TaskError(
                f"the label column {label.name!r} of {self.file} holds {label.said}, and the classes are "
                f"{in_words([str(each) for each in self.layout.classes])}: name its own values with classes="
            ) from error
        found = pc.index_in(values, value_set=known)
        if found.null_count:
            other = values.filter(found.is_null())[0].as_py()
            raise TaskError(
                f"the label column {label.name!r} of {self.file} holds {other!r}, which is none of the "
                f"classes {in_words([str(each) for each in self.layout.classes])}: correct it, or name it "
                "with classes="
            )
        numbers: NDArray[Any] = found.to_numpy()
        return numbers


def rows_in(row_bytes: int, block_bytes: int) -> int:
    """Return how many rows a block of about so many bytes has."""
    return max(1, min(65_536, block_bytes // max(1, row_bytes)))
