"""The rows of a site: inputs, labels and weights in numpy, read from arrays and data frames. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Inputs `x` with the rows along the first axis, labels or targets `y`, and `weights` [rows].

    `x` is one array, or a tuple or dictionary of arrays, for which there are no steps that need columns.
    `columns` are the names of a data frame's columns.
    """

    x: Any
    y: NDArray[Any] | None
    weights: NDArray[np.float64] | None = None
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(_first(self.x).shape[0])

    def take(self, which: NDArray[Any]) -> "Rows":
        """Return the rows with these numbers, or those where a mask is true."""
        return replace(
            self,
            x=_taken(self.x, which),
            y=None if self.y is None else self.y[which],
            weights=None if self.weights is None else self.weights[which],
        )

    def weighted(self, factors: NDArray[np.float64]) -> "Rows":
        """Return the same rows with their weights multiplied by `factors` [rows]."""
        return replace(self, weights=factors if self.weights is None else self.weights * factors)

    def table(self, step: str) -> NDArray[Any]:
        """Return the inputs as [rows, columns], a view; a row of an image is all its pixels.

        Raises TaskError, which names the step that needs it, when there is no single array of numbers.
        """
        if not isinstance(self.x, np.ndarray):
            raise TaskError(
                f"the data step {step} needs x as one array or data frame, and train_data returned "
                f"{type(self.x).__name__}: leave the step out, or return one array"
            )
        return self.x.reshape(len(self.x), -1)

    def column(self, at: int) -> str:
        """Return the name of a column of the table, or its number."""
        return repr(self.columns[at]) if self.columns else str(at)

    def labels(self, step: str) -> "Labels":
        """Return the class of each row. Raises TaskError that names the step where there are none."""
        found = None if self.y is None else labels_of(self.y)
        if found is None:
            held = "nothing" if self.y is None else f"{self.y.dtype} of shape {self.y.shape}"
            raise TaskError(
                f"the data step {step} needs a class for each row (whole numbers from 0, or one-hot), and y "
                f"holds {held}: leave the step out for a regression"
            )
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The class of each row [rows], and how many rows each class has [classes]; 0 for a missing one."""

    of_rows: Indices
    counts: Indices

    @property
    def present(self) -> Indices:
        """The classes that have rows."""
        return np.flatnonzero(self.counts)


def labels_of(y: NDArray[Any], *, any_whole: bool = False) -> Labels | None:
    """Return the class of each row, or None for a regression's targets and for several labels in one row.

    Floats are labels when they are whole numbers, and either 0 and 1 only or each on average of two rows;
    with `any_whole`, as for the few rows of a minibatch, all whole numbers are.
    Raises TaskError for labels below 0.
    """
    if y.ndim == 2 and y.shape[1] > 1:
        is_one_hot = bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())
        if not is_one_hot:
            return None
        of_rows = y.argmax(axis=1).astype(np.int64)
        return Labels(of_rows, np.bincount(of_rows, minlength=y.shape[1]))
    flat = y.reshape(-1)
    if flat.size != len(y) or not len(y):
        return None
    if flat.dtype.kind == "f":
        different = np.unique(flat)
        is_whole = bool((different == np.floor(different)).all())
        is_few = any_whole or set(different) <= {0.0, 1.0} or 2 * different.size <= flat.size
        if not (is_whole and is_few):
            return None
    if flat.dtype.kind not in "biuf":
        return None
    of_rows = flat.astype(np.int64)
    if of_rows.min() < 0:
        raise TaskError(
            f"y holds the label {of_rows.min()} in {int((of_rows < 0).sum())} rows; labels count from 0: "
            "give each class a number from 0, or NaN where the label is missing"
        )
    return Labels(of_rows, np.bincount(of_rows))


def read_rows(data: tuple[Any, ...]) -> Rows:
    """Return what train_data returned, (x, y) or (x, y, sample_weight), as rows.

    Raises TaskError for text where numbers are expected, and for parts of different lengths.
    """
    parts = [*data, None, None][:3]
    x, y, weights = parts
    columns = tuple(map(str, x.columns)) if _is_frame(x) else ()
    rows = Rows(
        _numbers("x", x),
        None if y is None else _numbers("y", y),
        None if weights is None else np.asarray(weights, np.float64).reshape(-1),
        columns,
    )
    lengths = {len(rows), *(len(part) for part in (rows.y, rows.weights) if part is not None)}
    if len(lengths) > 1:
        raise TaskError(
            f"train_data must return arrays of one length, not of {sorted(lengths)}: x, y and sample_weight "
            "have one entry for each row"
        )
    return rows


def _is_input(part: Any) -> bool:
    """Tell whether this is the array of one of several inputs, and not a row or a label."""
    return bool(getattr(part, "shape", ())) or _is_frame(part)


def _is_frame(part: Any) -> bool:
    return hasattr(part, "columns") and hasattr(part, "to_numpy")


def _numbers(name: str, part: Any) -> Any:
    """Return a part as numbers, with NaN for what a data frame calls missing."""
    if isinstance(part, dict):
        return {key: _numbers(f"{name}[{key!r}]", each) for key, each in part.items()}
    if isinstance(part, tuple | list) and part and all(map(_is_input, part)):
        return tuple(_numbers(f"{name}[{at}]", each) for at, each in enumerate(part))
    if hasattr(part, "tocsr"):
        return part.tocsr()
    if _is_frame(part):
        columns = [_one_column(f"the column {column!r}", part[column]) for column in part.columns]
        dtype = np.result_type(np.bool_, *(column.dtype for column in columns))
        # Booleans beside numbers, and columns of several kinds of numbers.
        return np.stack(columns, axis=1).astype(np.float64 if dtype.kind not in "biuf" else dtype)
    return _one_column(name, part)


def _one_column(name: str, part: Any) -> NDArray[Any]:
    array = part.to_numpy() if hasattr(part, "to_numpy") else np.asarray(part)
    if array.dtype.kind in "biuf" and array.ndim:
        return array
    if array.dtype.kind == "O":
        # None and pandas.NA are equal to nothing, or not to themselves.
        flat = [np.nan if _is_missing(each) else each for each in array.reshape(-1)]
        text = next((each for each in flat if isinstance(each, str)), None)
        if text is None:
            try:
                floats = np.array(flat, np.float64)
            except (TypeError, ValueError):
                text = next(each for each in flat if not isinstance(each, int | float))
            else:
                return floats.reshape(array.shape)
        raise TaskError(_expected_numbers(name, text))
    if array.size and array.dtype.kind in "US":
        raise TaskError(_expected_numbers(name, str(array.reshape(-1)[0])))
    raise TaskError(
        f"{name} holds {array.dtype} where the data steps expect an array of numbers: turn it into numbers "
        "in train_data"
    )


def _expected_numbers(name: str, found: object) -> str:
    return (
        f"{name} holds {type(found).__name__} such as {str(found)[:40]!r} where the data steps expect "
        "numbers: turn it into numbers in train_data, such as one 0-or-1 column for each value, or number "
        "its values from 0"
    )


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float) and math.isnan(value)


def _first(x: Any) -> Any:
    while isinstance(x, dict | tuple):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    return x


def _taken(x: Any, which: NDArray[Any]) -> Any:
    if isinstance(x, dict):
        return {key: _taken(each, which) for key, each in x.items()}
    if isinstance(x, tuple):
        return tuple(_taken(each, which) for each in x)
    return x[which]


def names_of(rows: Rows, which: Sequence[int] | Indices, most: int = 5) -> str:
    """Return the names of some columns for a sentence: "'age', 'weight' and 3 more"."""
    shown = ", ".join(rows.column(int(at)) for at in which[:most])
    return f"{shown} and {len(which) - most} more" if len(which) > most else shown
