"""The rows of a site: inputs, labels and weights in numpy, read from arrays and data frames. Pure."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.named import NamedTable

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
# Rows are counted for each number up to the largest label.
MOST_CLASSES = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Inputs `x` with the rows along the first axis, labels or targets `y`, and `weights` [rows].

    `x` is one array of numbers, a table whatever its shape. Or it is a tuple or dictionary of arrays, a
    sparse matrix, or texts [rows], and no step that needs columns works. `y` is an array, or several for a
    model with several outputs. `columns` are the names of a data frame's columns, `categories` the numbers of
    those that pandas calls categories, and `function` is which one of the task's functions returned the rows.
    """

    x: Any
    y: Any
    weights: NDArray[np.float64] | None = None
    columns: tuple[str, ...] = ()
    categories: tuple[int, ...] = ()
    function: str = "train_data"

    def __len__(self) -> int:
        return int(next(leaves(self.x)).shape[0])

    def take(self, which: NDArray[Any]) -> "Rows":
        """Return the rows with these numbers, or those where a mask is true."""
        return replace(
            self,
            x=_taken(self.x, which),
            y=None if self.y is None else _taken(self.y, which),
            weights=None if self.weights is None else self.weights[which],
        )

    def weighted(self, factors: NDArray[np.float64]) -> "Rows":
        """Return the same rows with their weights multiplied by `factors` [rows]."""
        return replace(self, weights=factors if self.weights is None else self.weights * factors)

    def table(self, step: str) -> NDArray[Any]:
        """Return the inputs as [rows, columns], a view; a row of an image is all its pixels.

        Raises TaskError, which names the step that needs it, when there is no single array of numbers.
        """
        if not self.is_table:
            found = f"{self.x.dtype}" if isinstance(self.x, np.ndarray) else type(self.x).__name__
            raise TaskError(
                f"the data step {step} needs x as one array or data frame of numbers, and {self.function} "
                f"returned {found}: leave the step out, or return one array"
            )
        return np.asarray(self.x.reshape(len(self.x), -1))

    @property
    def is_table(self) -> bool:
        """Whether the inputs are one array of numbers."""
        return isinstance(self.x, np.ndarray) and self.x.dtype.kind in "biuf"

    def column(self, at: int) -> str:
        """Return the name of a column of the table, or its number."""
        return repr(self.columns[at]) if self.columns else str(at)

    @property
    def classes(self) -> "Labels | None":
        """The class of each row; None for a regression, several labels in one row, and no rows.

        Whole numbers below 0 or from `MOST_CLASSES` on are the targets of a regression.
        """
        with suppress(TaskError):
            return self._labels()
        return None

    def _labels(self) -> "Labels | None":
        return labels_of(self.y) if isinstance(self.y, np.ndarray) and len(self) else None

    def labels(self, step: str) -> "Labels":
        """Return the class of each row. Raises TaskError that names the step where there are none."""
        found = self._labels()
        if found is None:
            held = "nothing" if self.y is None else f"a {type(self.y).__name__} of arrays"
            also = ""
            if isinstance(self.y, np.ndarray):
                held = f"{self.y.dtype} of shape {self.y.shape}"
                # As few rows as these may be classes, which floats cannot tell from targets.
                also = "; whole numbers of an integer type are classes" if self.y.dtype.kind == "f" else ""
            raise TaskError(
                f"the data step {step} needs a class for each row (whole numbers from 0, or one-hot), and y "
                f"holds {held}: leave the step out for a regression{also}"
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
    Raises TaskError for labels below 0 and from `MOST_CLASSES` on.
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
    if flat.min() < 0:
        raise TaskError(
            f"y holds the label {flat.min():.0f} in {int((flat < 0).sum())} rows; labels count from 0: "
            "give each class a number from 0, or NaN where the label is missing"
        )
    if flat.max() >= MOST_CLASSES:
        raise TaskError(
            f"y holds the label {flat.max():.0f}, and there may be {MOST_CLASSES:,} classes at most: number "
            "the classes from 0, or leave out what needs classes for a regression"
        )
    of_rows = flat.astype(np.int64)
    return Labels(of_rows, np.bincount(of_rows))


def read_rows(data: tuple[Any, ...], function: str = "train_data") -> Rows:
    """Return what one of a task's functions returned, (x, y) or (x, y, sample_weight), as rows.

    Raises TaskError for text where numbers are expected, and for parts of different lengths.
    """
    parts = [*data, None, None][:3]
    x, y, weights = parts
    names = list(x.columns) if _is_frame(x) else []
    rows = Rows(
        _each("x", x, _input),
        None if y is None else _each("y", y, _numbers),
        None if weights is None else np.asarray(weights, np.float64).reshape(-1),
        tuple(map(str, names)),
        tuple(at for at, name in enumerate(names) if _is_category(x[name])),
        function,
    )
    given = [*leaves(rows.x), *leaves(rows.y), *leaves(rows.weights)]
    lengths = {int(each.shape[0]) for each in given}
    if len(lengths) > 1:
        raise TaskError(
            f"{function} must return arrays of one length, not of {sorted(lengths)}: x, y and sample_weight "
            "have one entry for each row"
        )
    return rows


def _is_input(part: Any) -> bool:
    """Tell whether this is the array of one of several inputs, and not a row or a label."""
    return bool(getattr(part, "shape", ())) or _is_frame(part)


def _is_frame(part: Any) -> bool:
    return hasattr(part, "columns") and hasattr(part, "to_numpy")


def leaves(x: Any) -> Iterator[Any]:
    """Yield the arrays of inputs or outputs: one, or those of a tuple or dictionary; nothing for None."""
    if isinstance(x, dict | tuple):
        for each in x.values() if isinstance(x, dict) else x:
            yield from leaves(each)
    elif x is not None:
        yield x


def _each(name: str, part: Any, read: Callable[[str, Any], Any]) -> Any:
    """Read a part, or each one by itself where there are several inputs or outputs."""
    if isinstance(part, dict):
        return {key: _each(f"{name}[{key!r}]", each, read) for key, each in part.items()}
    if isinstance(part, tuple | list) and part and all(map(_is_input, part)):
        return tuple(_each(f"{name}[{at}]", each, read) for at, each in enumerate(part))
    return read(name, part)


def _input(name: str, part: Any) -> Any:
    """Return an input as numbers, or as one text for each row; a sparse matrix stays one."""
    if hasattr(part, "tocsr"):
        return part.tocsr()
    return _numbers(name, part) if (texts := _texts(part)) is None else texts


def _texts(part: Any) -> NDArray[Any] | None:
    """Return an array or column that holds one text for each row; None for others, and for data frames."""
    if _is_frame(part):
        return None
    array = part.to_numpy() if hasattr(part, "to_numpy") else np.asarray(part)
    is_text = array.dtype.kind in "US" or (
        array.dtype.kind == "O" and all(isinstance(each, str) for each in array.reshape(-1))
    )
    if not is_text or not array.ndim or array.size != len(array):
        return None
    return array if array.dtype.kind in "US" else array.astype(str)


def _is_category(column: Any) -> bool:
    return str(getattr(column, "dtype", "")) == "category"


def _numbers(name: str, part: Any) -> Any:
    """Return a part as numbers, with NaN for what a data frame calls missing."""
    if isinstance(part, NamedTable):
        return _one_column(name, part)
    if _is_frame(part):
        if twice := [each for each, count in Counter(part.columns).items() if count > 1]:
            raise TaskError(
                f"{name} has more than one column {twice[0]!r}: give each column a name of its own"
            )
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
        f"{name} holds {array.dtype} where an array of numbers is expected: turn it into numbers in "
        "train_data"
    )


def _expected_numbers(name: str, found: object) -> str:
    return (
        f"{name} holds {type(found).__name__} such as {str(found)[:40]!r} where numbers are "
        "expected: turn it into numbers in train_data, such as one 0-or-1 column for each value, or number "
        "its values from 0"
    )


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float) and math.isnan(value)


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
