"""What is published of a survey: few numbers for each column, and none that stands for few rows. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fluffle.fields import Count, FieldError, Positive, at_most, of_type
from fluffle.survey.columns import MAX_COLUMNS
from fluffle.survey.shape import MAX_CLASSES, ColumnName

# The shares of the values below each published quantile.
LEVELS: Final = (0.01, *(round(0.05 * step, 2) for step in range(1, 20)), 0.99)
FACTS: Final = ("count", "missing", "mean", "deviation", "lowest", "highest")
PACKED_BYTES: Final = 8 * (len(FACTS) + len(LEVELS))


def _require_packed(found: bytes) -> None:
    if len(found) != PACKED_BYTES:
        raise FieldError(f"{len(found)} bytes, expected {PACKED_BYTES}")


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SurveyedColumn:
    """What is published of one column; NaN for what would stand for fewer rows than the least count.

    `packed` holds float64, little-endian: the FACTS and then the quantiles of LEVELS.
    """

    name: ColumnName
    packed: Annotated[bytes, of_type(bytes), _require_packed]

    @cached_property
    def _numbers(self) -> Floats:
        return np.frombuffer(self.packed, "<f8").astype(np.float64)

    @property
    def count(self) -> float:
        """The number of values that are there."""
        return float(self._numbers[0])

    @property
    def missing(self) -> float:
        """The number of missing values."""
        return float(self._numbers[1])

    @property
    def mean(self) -> float:
        """The mean of the values of all sites."""
        return float(self._numbers[2])

    @property
    def deviation(self) -> float:
        """The standard deviation of the values of all sites (divided by their number)."""
        return float(self._numbers[3])

    @property
    def lowest(self) -> float:
        """The value that has the rank of the least count from below, to 1/1024 of the range."""
        return float(self._numbers[4])

    @property
    def highest(self) -> float:
        """The value that has the rank of the least count from above, to 1/1024 of the range."""
        return float(self._numbers[5])

    @property
    def quantiles(self) -> Floats:
        """The quantiles [21] of LEVELS, to 1/1024 of the range."""
        return self._numbers[len(FACTS) :]


@dataclass(frozen=True)
class SurveyResult:
    """The statistics of the data of all sites that answered.

    `rows` are those of all `sites` together. `class_counts` are None for data without classes; of them, one
    is None where it would stand for fewer rows than `min_count`.
    """

    sites: Positive
    rows: Count
    min_count: Positive
    columns: Annotated[tuple[SurveyedColumn, ...], at_most(MAX_COLUMNS)]
    class_counts: Annotated[tuple[Count | None, ...], at_most(MAX_CLASSES)] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(each.name for each in self.columns)

    @property
    def mean(self) -> Floats:
        """The mean of each column [columns]; NaN where it is not published."""
        return np.array([each.mean for each in self.columns])

    @property
    def deviation(self) -> Floats:
        """The standard deviation of each column [columns]; NaN where it is not published."""
        return np.array([each.deviation for each in self.columns])

    def __getitem__(self, name: str) -> SurveyedColumn:
        """Return the column of a name; KeyError when there is none."""
        for each in self.columns:
            if each.name == name:
                return each
        raise KeyError(name)

    @property
    def class_prior(self) -> Floats | None:
        """The share of each class in the rows of all sites [classes], None for data without classes.

        A class whose count is not published has half of the least count; one without any row has 0.
        """
        if self.class_counts is None:
            return None
        counts = np.array([self.min_count / 2 if each is None else each for each in self.class_counts], float)
        return counts / counts.sum() if counts.sum() else counts


class Column(Protocol):
    """The sums of one column over all sites."""

    @property
    def count(self) -> int:
        """The number of values that are there."""

    @property
    def missing(self) -> int:
        """The number of missing values."""

    @property
    def mean(self) -> float:
        """The mean of the values."""

    @property
    def deviation(self) -> float:
        """The standard deviation of the values, divided by their number."""

    def ranked(self, ranks: NDArray[np.int64]) -> Floats:
        """Return a value near to that of each rank, from 1 on."""


class Merged(Protocol):
    """The statistics of all sites together."""

    @property
    def rows(self) -> int:
        """The rows of all sites."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""

    @property
    def columns(self) -> Sequence[Column]:
        """The sums of each column."""

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The rows of each class, None where there are none."""


def result_of(statistics: Merged, *, sites: int, min_count: int) -> SurveyResult:
    """Return what is published of the merged statistics of so many sites.

    Nothing is in it that stands for fewer values than `min_count`: no class, no end of a column, no quantile
    with fewer values on one side of it.
    """
    names = zip(statistics.names, statistics.columns, strict=True)
    columns = tuple(SurveyedColumn(name, _packed(column, min_count)) for name, column in names)
    classes = None if statistics.classes is None else _without_small(statistics.classes, min_count)
    return SurveyResult(sites, statistics.rows, min_count, columns, classes)


def _packed(column: Column, min_count: int) -> bytes:
    count, missing = column.count, column.missing
    numbers = np.full(len(FACTS) + len(LEVELS), np.nan)
    if count >= min_count:
        numbers[2:4] = column.mean, column.deviation
    # Of rows, values and missing values, two tell the third.
    if not (0 < missing < min_count or 0 < count < min_count):
        numbers[:2] = count, missing
    if count >= 2 * min_count:
        ranks = np.array(
            [min_count, *(max(1, math.ceil(level * count)) for level in LEVELS), count + 1 - min_count]
        )
        lowest, *quantiles, highest = column.ranked(ranks)
        has_both = (ranks[1:-1] >= min_count) & (ranks[1:-1] <= count + 1 - min_count)
        numbers[4:6] = lowest, highest
        numbers[6:] = np.where(has_both, quantiles, np.nan)
    return numbers.astype("<f8").tobytes()


def _without_small(classes: tuple[int, ...], min_count: int) -> tuple[int | None, ...]:
    """Return the counts without small ones, and never without a single one: the sum would give it away."""
    small = {at for at, count in enumerate(classes) if 0 < count < min_count}
    others = [at for at, count in enumerate(classes) if count and at not in small]
    if len(small) == 1 and others:
        small.add(min(others, key=lambda at: classes[at]))
    return tuple(None if at in small else count for at, count in enumerate(classes))
