"""Arrow batches of one site to the arrays that a task trains on, in bounded memory. Pure.

Each column is copied once, into an array that grows in place, so that nothing but one batch lies in memory
besides the arrays. Numbers and booleans become float32, and null becomes NaN.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fluffle.errors import TaskError

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
        scalars = [name for name in self._features if not _is_nested(batch.schema.field(name).type)]
        if len(scalars) == len(self._features):
            self._add_table(batch)
        else:
            for name in self._features:
                self._add_column(name, batch.column(name))
        self._add_label(batch.column(self._label))
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

    def _count_missing(self, name: str, values: NDArray[Any]) -> None:
        if found := int(np.isnan(values).sum()):
            self.missing[name] = self.missing.get(name, 0) + found

    def _add_table(self, batch: pa.RecordBatch) -> None:
        if self._table is None:
            self._table = GrowingArray((len(self._features),), np.dtype(np.float32))
        into = self._table.add(batch.num_rows)
        for at, name in enumerate(self._features):
            into[:, at] = _numbers(name, batch.column(name))
            self._count_missing(name, into[:, at])

    def _add_column(self, name: str, column: pa.Array) -> None:
        values = _nested(name, column) if _is_nested(column.type) else _numbers(name, column)
        if name not in self._x:
            self._x[name] = GrowingArray(values.shape[1:], np.dtype(np.float32))
        into = self._x[name].add(len(values))
        if into.shape != values.shape:
            raise TaskError(
                f"the arrays in the column {name!r} have different sizes, {into.shape[1:]} and "
                f"{values.shape[1:]}: give each row as many values"
            )
        into[...] = values
        self._count_missing(name, values)

    def _add_label(self, column: pa.Array) -> None:
        if column.null_count:
            raise TaskError(
                f"the label {self._label!r} is null in {column.null_count} of these rows: fill it, or drop "
                "the rows"
            )
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            self._texts.append(column.to_numpy(zero_copy_only=False).astype(str))
            return
        if _is_nested(column.type):
            values = _nested(self._label, column)
        elif pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
            values = column.cast(pa.int64()).to_numpy()
        else:
            values = _numbers(self._label, column)
            if missing := int(np.isnan(values).sum()):
                raise TaskError(
                    f"the label {self._label!r} is NaN in {missing} of these rows: fill it, or drop the rows"
                )
        if self._y is None:
            self._y = GrowingArray(values.shape[1:], values.dtype)
        self._y.add(len(values))[...] = values


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _numbers(name: str, column: pa.Array) -> NDArray[Any]:
    """Return a column of numbers or booleans as float32, null as NaN."""
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise TaskError(
            f"the column {name!r} holds {kind} where numbers are expected: turn it into numbers, or leave it "
            "out of the features"
        )
    return np.asarray(column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))


def _nested(name: str, column: pa.Array) -> NDArray[Any]:
    """Return a column of arrays, or of arrays of arrays, as [rows, ...] float32."""
    if column.null_count:
        raise TaskError(
            f"the column {name!r} is null in {column.null_count} rows, and an array cannot be filled: drop "
            "these rows"
        )
    inner = column.flatten()
    sizes = np.unique(np.asarray(column.value_lengths()))
    if len(sizes) != 1:
        raise TaskError(
            f"the arrays in the column {name!r} have from {sizes.min()} to {sizes.max()} values: give each "
            "row as many"
        )
    values = _nested(name, inner) if _is_nested(inner.type) else _numbers(name, inner)
    return values.reshape(len(column), int(sizes[0]), *values.shape[1:])
