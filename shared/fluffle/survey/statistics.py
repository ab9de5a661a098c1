"""What one site sends of its data, computed from arrays, and merged with that of others. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.survey.columns import MAX_COLUMNS, ColumnSums, Table, sums_of
from fluffle.survey.shape import MAX_CLASSES, MAX_COLUMN_NAME, SurveyShape


@dataclass(frozen=True, slots=True, eq=False)
class DataStatistics:
    """Sums over the rows of a site, or of several; no row can be read from them.

    `names` and `columns` have an entry for each column; a row of a table has one value of each, and an image
    as many as pixels. `classes` counts the rows of each class, and is None where there are none.
    """

    rows: int
    names: tuple[str, ...]
    columns: tuple[ColumnSums, ...]
    classes: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, rows: int, names: Sequence[str], columns: Sequence[ColumnSums], classes: Sequence[int] | None
    ) -> Self:
        """Return statistics whose names can be shown. Raises TaskError for names that are there twice."""
        shown = tuple(map(_printable, names))
        if len(set(shown)) != len(columns) or len(columns) > MAX_COLUMNS:
            raise TaskError(
                f"a survey takes up to {MAX_COLUMNS} columns, each with a name of its own, and found "
                f"{len(columns)} columns with {len(set(shown))} different names"
            )
        return cls(rows, shown, tuple(columns), None if classes is None else tuple(classes))

    @property
    def beyond_float32(self) -> list[str]:
        """The names of the columns with values that no float32 has."""
        return [
            name for name, column in zip(self.names, self.columns, strict=True) if column.is_beyond_float32
        ]

    def merged(self, other: "DataStatistics") -> "DataStatistics":
        """Return the statistics of all rows together, exactly; for others that differ in nothing.

        The order does not matter, and neither does the grouping.
        """
        classes = self.classes
        if self.classes is not None and other.classes is not None:
            classes = tuple(map(sum, zip(self.classes, other.classes, strict=True)))
        return replace(
            self,
            rows=self.rows + other.rows,
            columns=tuple(one.merged(two) for one, two in zip(self.columns, other.columns, strict=True)),
            classes=classes,
        )

    @property
    def shape(self) -> SurveyShape:
        """What all sites have in common."""
        several = tuple(each.values != self.rows for each in self.columns)
        return SurveyShape(self.names, several, -1 if self.classes is None else len(self.classes))

    def difference(self, other: "DataStatistics") -> str:
        """Return in which way the columns or classes of another one differ; empty where they do not."""
        return self.shape.difference(other.shape)

    def __str__(self) -> str:
        names = ", ".join(self.names[:5]) + (" and more" if len(self.names) > 5 else "")
        return f"{self.rows} rows, {len(self.names)} columns ({names}), {self.shape.classes_in_words}"

    @property
    def most_values(self) -> int:
        """The largest number of values of a column, with the missing ones."""
        return max(each.values for each in self.columns)


def statistics_of(
    x: NDArray[np.generic],
    labels: NDArray[np.generic] | None = None,
    *,
    names: Sequence[str] = (),
    classes: int = 0,
    missing: NDArray[np.bool_] | None = None,
) -> DataStatistics:
    """Return the statistics of rows [rows, ...]: one column for each entry of the last axis.

    Values that are not finite, and those where `missing` [rows, ...] is true, count as missing. `labels`
    [rows] are whole numbers from 0 and below `classes`; without `classes` there are none. `names` are those
    of the columns.

    Raises TaskError, which says what was expected, for rows that cannot be surveyed.
    """
    table = x.reshape(len(x), -1) if x.ndim < 2 else x

    def chunks() -> Iterator[Table]:
        if missing is None:
            yield table
        else:
            yield np.where(missing.reshape(table.shape), np.nan, table.astype(np.float64))

    return statistics_of_chunks(chunks, names=names, classes=_counted(labels, classes) if classes else None)


def statistics_of_chunks(
    chunks: Callable[[], Iterator[NDArray[np.generic]]],
    *,
    names: Sequence[str] = (),
    classes: Sequence[int] | None = None,
) -> DataStatistics:
    """Return the statistics of rows that come in chunks [rows, ...], all over again at each call.

    `classes` are the rows of each class. Raises TaskError for rows that cannot be surveyed.
    """
    rows, shape = 0, None

    def flat() -> Iterator[Table]:
        nonlocal rows, shape
        rows = 0
        for chunk in chunks():
            if not len(chunk):
                continue
            if chunk.dtype.kind not in "biuf":
                raise TaskError(f"a survey counts numbers, and found {chunk.dtype}: turn it into numbers")
            if shape is None:
                shape = chunk.shape[1:]
                _require_columns(shape)
            if chunk.shape[1:] != shape:
                raise TaskError(f"a survey needs rows of one shape, and found {shape} and {chunk.shape[1:]}")
            rows += len(chunk)
            yield chunk.reshape(-1, shape[-1])

    for _ in flat():
        break
    if shape is None:
        raise TaskError("there is no row to survey: train_data must return at least 1")
    columns = sums_of(flat)
    return DataStatistics.of(rows, names or list(map(str, range(len(columns)))), columns, classes)


def _require_columns(shape: tuple[int, ...]) -> None:
    if not 1 <= shape[-1] <= MAX_COLUMNS or not prod(shape):
        raise TaskError(
            f"a survey takes 1 to {MAX_COLUMNS} columns along the last axis, and rows have the shape "
            f"{shape}: put the channels last, or leave --survey out at the aggregator"
        )


def _counted(labels: NDArray[np.generic] | None, classes: int) -> list[int]:
    found = np.zeros(0, np.int64) if labels is None else labels.reshape(-1).astype(np.int64)
    if classes > MAX_CLASSES:
        raise TaskError(f"a survey counts at most {MAX_CLASSES} classes, not {classes}")
    if found.size and not (found.min() >= 0 and found.max() < classes):
        wrong = found.min() if found.min() < 0 else found.max()
        raise TaskError(
            f"a survey counts the labels 0 to {classes - 1}, and found {wrong}: correct the labels"
        )
    return [int(each) for each in np.bincount(found, minlength=classes)]


def _printable(name: str) -> str:
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(name))
    return shown[:MAX_COLUMN_NAME] or "?"
