"""Arrow batches of one site to the arrays that a task trains on, in bounded memory. Pure.

Each column is copied once, into an array that grows in place, so that nothing but one batch lies in memory
besides the arrays. Numbers and booleans become float32, and null becomes NaN, as in files of a data set.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.stored.columns import Column, column_of, dense, with_length
from fluffle_worker.data.stored.source import require_float32

# What a sentence says of where a column lies.
WHERE = "the data frame"
# An array that must grow gets this many times its size. What is not written to yet takes no memory.
GROWTH = 2
FIRST_ROWS = 4096


class GrowingArray:
    """An array of rows that grows in place."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Begin without rows; each will have `shape`."""
        self._array = np.empty((FIRST_ROWS, *shape), dtype)
        self._rows = 0

    def add(self, rows: int) -> NDArray[Any]:
        """Return a view of so many new rows, to be written before the next call."""
        needed = self._rows + rows
        if needed > len(self._array):
            size = max(needed, GROWTH * len(self._array))
            # No copy: the C library moves the pages. No view of the array is kept.
            self._array.resize((size, *self._array.shape[1:]), refcheck=False)
        self._rows, begin = needed, self._rows
        return self._array[begin:needed]

    def finish(self) -> NDArray[Any]:
        """Return the rows; the array must not grow any more."""
        self._array.resize((self._rows, *self._array.shape[1:]), refcheck=False)
        return self._array


class SiteRows:
    """The rows of a site, built batch by batch.

    Columns of numbers become one array [rows, columns]; one column of arrays becomes an array [rows, ...].
    Where there are both, or several columns of arrays, the inputs are a dictionary with an array for each.
    `missing` counts the values of each feature that are null or NaN.
    """

    def __init__(self, features: Sequence[str], label: str) -> None:
        self._features, self._label = tuple(features), label
        self._columns: dict[str, Column] = {}
        self._x: dict[str, GrowingArray] = {}
        self._table: GrowingArray | None = None
        self._y: GrowingArray | None = None
        self._texts: list[NDArray[Any]] = []
        self.missing: dict[str, int] = {}
        self.rows = 0

    def add_all(self, batches: Iterable[pa.RecordBatch]) -> "SiteRows":
        """Add batches; raises TaskError for a column that cannot be used."""
        for batch in batches:
            self.add(batch)
        return self

    def add(self, batch: pa.RecordBatch) -> None:
        """Add one batch; raises TaskError for a column that cannot be used."""
        if not batch.num_rows:
            return
        for name in (*self._features, self._label):
            if name not in self._columns:
                column = column_of(batch.schema.field(name))
                self._columns[name] = with_length(column, batch.column(name), WHERE)
        if any(self._columns[name].shape for name in self._features):
            for name in self._features:
                self._add_column(name, batch)
        else:
            self._add_table(batch)
        self._add_label(batch)
        self.rows += batch.num_rows

    def parts(self) -> tuple[object, NDArray[Any]]:
        """Return (x, y). Raises TaskError when there are no rows."""
        if not self.rows:
            raise TaskError("this site has no rows: leave it out, or give it data")
        y = np.concatenate(self._texts) if self._texts else self._y.finish() if self._y else np.empty(0)
        if self._table is not None:
            return self._table.finish(), y
        arrays = {name: column.finish() for name, column in self._x.items()}
        return (next(iter(arrays.values())) if len(arrays) == 1 else arrays), y

    def _add_table(self, batch: pa.RecordBatch) -> None:
        if self._table is None:
            self._table = GrowingArray((len(self._features),), np.dtype(np.float32))
        into = self._table.add(batch.num_rows)
        for at, name in enumerate(self._features):
            self._write_feature(into[:, at], name, batch)

    def _add_column(self, name: str, batch: pa.RecordBatch) -> None:
        if name not in self._x:
            self._x[name] = GrowingArray(self._columns[name].shape, np.dtype(np.float32))
        self._write_feature(self._x[name].add(batch.num_rows), name, batch)

    def _write_feature(self, into: NDArray[np.float32], name: str, batch: pa.RecordBatch) -> None:
        _write(into, self._numbers(name, batch), f"the column {name!r} of {WHERE}")
        if missing := int(np.isnan(into).sum()):
            self.missing[name] = self.missing.get(name, 0) + missing

    def _add_label(self, batch: pa.RecordBatch) -> None:
        values, column = batch.column(self._label), self._columns[self._label]
        if values.null_count:
            raise TaskError(
                f"the label {self._label!r} is null in {values.null_count} of these rows: fill it, or drop "
                "the rows"
            )
        if column.kind == "text" and not column.shape:
            self._texts.append(values.to_numpy(zero_copy_only=False).astype(str))
            return
        numbers = self._numbers(self._label, batch)
        if missing := int(np.isnan(numbers).sum()):
            raise TaskError(
                f"the label {self._label!r} is NaN in {missing} of these rows: fill it, or drop the rows"
            )
        if self._y is None:
            is_class = column.is_whole and not column.shape
            self._y = GrowingArray(column.shape, np.dtype(np.int64 if is_class else np.float32))
        _write(self._y.add(len(numbers)), numbers, f"the label {self._label!r} of {WHERE}")

    def _numbers(self, name: str, batch: pa.RecordBatch) -> NDArray[Any]:
        column = self._columns[name]
        if column.kind != "number":
            raise TaskError(
                f"the column {name!r} holds {column.said} where numbers are expected: turn it into numbers, "
                "or leave it out of the features"
            )
        return dense(batch.column(name), column, WHERE)


def _write(into: NDArray[Any], numbers: NDArray[Any], what: str) -> None:
    """Write numbers into an array; raises TaskError for one that is too large for float32."""
    try:
        with np.errstate(over="raise"):
            into[...] = numbers
    except FloatingPointError:
        require_float32(numbers, what)
        raise
