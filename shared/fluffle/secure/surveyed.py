"""The statistics of a survey as numbers that are masked and added up, and what their sum says. Pure.

Sums under masks need places that do not depend on anybody's data. So values are counted in leaves that
everybody knows: 64 powers of two in both directions, each cut into equally many parts. The sums of values
and of their squares are whole numbers of 2**-64 and 2**-128. All of these are sums of digits, each of
which is as small as the number of sites allows.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.secure.limbs import digits_for, digits_of, largest_digit, largest_in
from fluffle.secure.modulus import Residues, Signed
from fluffle.secure.plan import SecurePlan
from fluffle.survey.columns import ColumnSums
from fluffle.survey.shape import SurveyShape
from fluffle.survey.statistics import DataStatistics

# Of each digit. Sums of 4096 digits, as many as a sum has updates at most, stay within 32 bits.
BITS: Final = 20
BASE: Final = 1 << BITS - 1
# Values have at most so many bits before the point, and those of a sum so many behind it.
MOST_BITS, FRACTION_BITS = 64, 64
# Values of a column at one site.
COUNT_BITS: Final = 36
_COUNT_DIGITS: Final = digits_for(COUNT_BITS, BITS)
_TOTAL_DIGITS: Final = digits_for(COUNT_BITS + MOST_BITS + FRACTION_BITS, BITS)
_SQUARES_DIGITS: Final = digits_for(COUNT_BITS + 2 * (MOST_BITS + FRACTION_BITS), BITS)
# Magnitudes from 2**-32 to 2**32 have leaves of their own; below is 0, and above is the last leaf.
LOWEST_POWER, POWERS = -32, 64
# Each power of two is cut into 2**FINEST parts at most, and into fewer where there are many columns.
FINEST: Final = 9
MOST_LEAVES: Final = 2**20

Counts = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.object_)


def fineness_of(shape: SurveyShape) -> int:
    """Return into how many parts each power of two is cut, as a power of two itself."""
    most = MOST_LEAVES // len(shape.names)
    return max(each for each in range(FINEST + 1) if leaves_of(each) <= most or not each)


def size_of(shape: SurveyShape) -> int:
    """Return how many numbers an answer has."""
    of_column = _COUNT_DIGITS * (1 + leaves_of(fineness_of(shape))) + _TOTAL_DIGITS + _SQUARES_DIGITS
    return _COUNT_DIGITS * (1 + max(0, shape.classes)) + len(shape.names) * of_column


def survey_plan(plan: SecurePlan) -> SecurePlan:
    """Return the plan by which the answers to a survey are masked: all weigh the same."""
    changed = replace(plan, clip=1.0, by_norm=False, bits=BITS, modulus_bits=32, greatest=1, metrics=())
    return changed.numbered()


def leaves_of(fineness: int) -> int:
    """Return the number of leaves: those of all negative values, of 0, and of all positive ones."""
    return 2 * (POWERS << fineness) + 1


def leaf_of(values: NDArray[np.float64], fineness: int) -> Counts:
    """Return the number of the leaf of each value."""
    most = (POWERS << fineness) - 1
    fractions, exponents = np.frexp(np.abs(values))
    # A magnitude is (1 + part / 2**fineness) * 2**power, and frexp's fraction half of the first factor.
    parts = np.floor((2 * fractions - 1) * (1 << fineness)).astype(np.int64)
    powers = exponents.astype(np.int64) - 1 - LOWEST_POWER
    magnitudes = np.minimum((powers << fineness) + parts, most)
    middle = POWERS << fineness
    is_zero = (values == 0) | (powers < 0)
    return np.where(is_zero, middle, middle + np.where(values < 0, -1 - magnitudes, 1 + magnitudes))


def edge_of(leaf: int, fineness: int) -> float:
    """Return the lower edge of a leaf; 0 for the one of 0."""
    middle = POWERS << fineness
    # The lower edge of a negative leaf is the upper one of its magnitude.
    magnitude = leaf - middle - 1 if leaf > middle else middle - leaf
    if leaf == middle:
        return 0.0
    power, part = divmod(magnitude, 1 << fineness)
    edge = math.ldexp(1 + part / (1 << fineness), power + LOWEST_POWER)
    return edge if leaf > middle else -edge


def numbers_of(statistics: DataStatistics) -> Residues:
    """Return the statistics of a site as whole numbers, uint32 [size_of], not masked yet.

    Raises TaskError for values of 2**64 and more, and for more rows than can be added up.
    """
    fineness = fineness_of(statistics.shape)
    names = zip(statistics.names, statistics.columns, strict=True)
    sums = [_sums_of(name, column, fineness) for name, column in names]
    most = max(statistics.rows, statistics.most_values)
    if most >> COUNT_BITS:
        raise TaskError(f"a masked survey takes fewer than 2**{COUNT_BITS} values of a column, not {most}")
    counts = np.concatenate(
        [
            np.array([statistics.rows, *(each.missing for each in statistics.columns)], np.int64),
            *(each.counts for each in sums),
            np.array(statistics.classes or (), np.int64),
        ]
    )
    digits = [
        digits_of(counts, _COUNT_DIGITS, BITS),
        digits_of(np.array([each.total for each in sums], object), _TOTAL_DIGITS, BITS),
        digits_of(np.array([each.squares for each in sums], object), _SQUARES_DIGITS, BITS),
    ]
    return np.concatenate([each.reshape(-1) for each in digits]).view(np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    total: int
    squares: int
    counts: Counts


def _sums_of(name: str, column: ColumnSums, fineness: int) -> _Sums:
    """Return the sums of a column's values and of their squares, about 0, and the counts of all leaves."""
    at = np.flatnonzero(column.counts)
    scale = Fraction(2) ** column.exponent
    furthest = max(abs(column.first), abs(column.first + column.counts.size)) * scale
    if at.size and furthest > 1 << MOST_BITS:
        raise TaskError(
            f"the column {name!r} has values of up to {float(furthest):.3g}, and a masked survey takes those "
            f"below 2**{MOST_BITS}: give it another unit"
        )
    # Counted in the leaf of each value's lower edge on the site's own grid, which is finer mostly.
    edges = np.ldexp((column.first + at).astype(np.float64), column.exponent)
    counts = np.bincount(leaf_of(edges, fineness), column.counts[at], leaves_of(fineness))
    edge, unit, n = column.first * scale, Fraction(2) ** column.unit, column.count
    total = n * edge + column.total * unit
    squares = n * edge**2 + 2 * edge * unit * column.total + unit**2 * column.squares
    whole = Fraction(1 << FRACTION_BITS)
    return _Sums(round(total * whole), round(squares * whole**2), np.rint(counts).astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class SummedColumn:
    """What a sum says of one column, with the names that `ColumnSums` has."""

    missing: int
    counts: Counts
    total: int
    squares: int
    fineness: int
    sites: int

    @property
    def count(self) -> int:
        """The number of values that are there."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(Fraction(self.total, self.count << FRACTION_BITS))

    @property
    def deviation(self) -> float:
        """The standard deviation of the values, divided by their number.

        It is 0 where it cannot be told from what each site has rounded.
        """
        spread = self.count * self.squares - self.total**2
        rounded = self.sites * (self.count + 2 * abs(self.total))
        if spread <= rounded:
            return 0.0
        return math.sqrt(Fraction(spread, self.count**2 << 2 * FRACTION_BITS))

    def ranked(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return, for each rank from 1 on, the lower edge of the leaf that holds that value."""
        at = np.searchsorted(self.counts.cumsum(), ranks)
        return np.array([edge_of(int(each), self.fineness) for each in at])


@dataclass(frozen=True, slots=True, eq=False)
class SurveySums:
    """What a sum says of the data of all of its sites, with the names that `DataStatistics` has."""

    rows: int
    names: tuple[str, ...]
    columns: tuple[SummedColumn, ...]
    classes: tuple[int, ...] | None


def sums_in(signed: Signed, shape: SurveyShape, sites: int) -> SurveySums:
    """Return what an opened sum of the answers of so many sites says. Raises ValueError if it is nonsense."""
    largest = largest_in(signed)
    if largest > sites * largest_digit(BITS):
        raise ValueError(
            f"a digit is {largest}, and those of honest sites come to {sites * largest_digit(BITS)}"
        )
    fineness = fineness_of(shape)
    columns, leaves = len(shape.names), leaves_of(fineness)
    classes = max(0, shape.classes)
    many = 1 + columns + columns * leaves + classes
    ends = np.cumsum([_COUNT_DIGITS * many, _TOTAL_DIGITS * columns])
    of_counts, of_totals, of_squares = np.split(signed, ends)
    counts = _whole(of_counts.astype(np.int64), _COUNT_DIGITS)
    totals = _whole(of_totals.astype(object), _TOTAL_DIGITS)
    squares = _whole(of_squares.astype(object), _SQUARES_DIGITS)
    if counts.min() < 0 or min(squares, default=0) < 0:
        raise ValueError("it counts fewer than no rows")
    missing, of_leaves = counts[1 : 1 + columns], counts[1 + columns : 1 + columns + columns * leaves]
    of_columns = zip(missing, of_leaves.reshape(columns, leaves), totals, squares, strict=True)
    return SurveySums(
        int(counts[0]),
        shape.names,
        tuple(
            SummedColumn(int(gone), each, int(total), int(square), fineness, sites)
            for gone, each, total, square in of_columns
        ),
        None if shape.classes < 0 else tuple(int(each) for each in counts[many - classes :]),
    )


def _whole(digits: NDArray[Number], count: int) -> NDArray[Number]:
    """Return the whole numbers that sums of digits [count * size] stand for."""
    whole = np.zeros(digits.size // count, digits.dtype)
    for row in digits.reshape(count, -1)[::-1]:
        whole = whole * BASE + row
    return whole
