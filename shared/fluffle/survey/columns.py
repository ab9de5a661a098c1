"""The sums of one column: counted on the shared grid, and merged exactly. Pure.

The sums of values and of squares are taken about the lower edge of the column's first leaf, which everybody
can see, in a unit of 2^-32 of a leaf. So a column with a large mean and a small deviation loses no digits,
and rounding moves no value by more than 2^-43 of the range.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import hypot, isqrt

import numpy as np
from numpy.typing import NDArray

from fluffle.survey.grid import LEAVES, Window, window_of, window_over

MAX_COLUMNS = 1024
# The unit of the sums is the width of a leaf by 2 to the power of this.
FRACTION_BITS = 32
# Of a value in units, so many bits are squared at once: the sum over a chunk fits into an int64.
LOW_BITS = 22
# Values that are worked on at once: some copies of them, as float64, are in memory.
CHUNK_VALUES = 2**20
MOST_ROWS_AT_ONCE = 2**16
# A root of so many bits is exact in a float64.
ROOT_BITS = 64
# The window of a column without any value.
NOTHING = Window(0, 0, -1)

_LARGEST_FLOAT32 = Fraction(float(np.finfo(np.float32).max))
_SMALLEST = Fraction(-float(np.finfo(np.float64).max))
Table = NDArray[np.generic]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSums:
    """What is known of one column: counts and sums of integers alone.

    `counts` [leaves] are those of the leaves of 2^`exponent` from the number `first` on; the first and the
    last one are not 0, and there is none for a column without any value. With y = (x - first * 2^exponent) /
    2^`unit`, rounded to whole numbers, `total` is the sum of y, and `squares` that of its squares.
    """

    missing: int
    exponent: int = 0
    first: int = 0
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    unit: int = -FRACTION_BITS
    total: int = 0
    squares: int = 0

    @property
    def count(self) -> int:
        """The number of values that are there."""
        return int(self.counts.sum())

    @property
    def values(self) -> int:
        """The number of values, with the missing ones."""
        return self.count + self.missing

    @property
    def window(self) -> Window:
        """The leaves of this column."""
        return Window(self.exponent, self.first, self.first + self.counts.size - 1)

    def merged(self, other: "ColumnSums") -> "ColumnSums":
        """Return the sums of both columns' values together; nothing is rounded."""
        missing = self.missing + other.missing
        if not self.counts.size or not other.counts.size:
            return replace(self if self.counts.size else other, missing=missing)
        window, unit = window_over(self.window, other.window), min(self.unit, other.unit)
        one, two = self._moved(window, unit), other._moved(window, unit)
        return ColumnSums(
            missing,
            window.exponent,
            window.first,
            one.counts + two.counts,
            unit,
            one.total + two.total,
            one.squares + two.squares,
        )

    def _moved(self, window: Window, unit: int) -> "ColumnSums":
        """Return the same sums in another window that covers all values, no finer, and in a finer unit."""
        by = min(63, window.exponent - self.exponent)
        at = np.flatnonzero(self.counts)
        counts = np.zeros(window.leaves, np.int64)
        np.add.at(counts, ((self.first + at) >> by) - window.first, self.counts[at])
        finer = self.unit - unit
        # How far the edge moves down, in the finer unit: edges are multiples of every unit.
        shift = (self.first << (self.exponent - unit)) - (window.first << (window.exponent - unit))
        count, total = self.count, self.total << finer
        squares = (self.squares << 2 * finer) + 2 * shift * total + count * shift**2
        return ColumnSums(
            self.missing, window.exponent, window.first, counts, unit, total + count * shift, squares
        )

    def trimmed(self) -> "ColumnSums":
        """Return the same sums without empty leaves at both ends."""
        at = np.flatnonzero(self.counts)
        if not at.size:
            return ColumnSums(self.missing)
        ends = self.first + int(at[0]), self.first + int(at[-1])
        return self._moved(Window(self.exponent, *ends), self.unit)

    @property
    def mean(self) -> float:
        """The mean of the values, rounded once."""
        edge = Fraction(self.first) * _power_of_two(self.exponent)
        return float(edge + Fraction(self.total, self.count) * _power_of_two(self.unit))

    @property
    def deviation(self) -> float:
        """The standard deviation of the values, divided by their number and not by one less."""
        spread = self.count * self.squares - self.total**2
        more = max(0, ROOT_BITS - spread.bit_length() // 2)
        root = isqrt(spread << 2 * more)
        return float(Fraction(root, self.count << more) * _power_of_two(self.unit))

    @property
    def size(self) -> float:
        """The root mean square of the values; 0 without any."""
        return hypot(self.mean, self.deviation) if self.count else 0.0

    @property
    def is_beyond_float32(self) -> bool:
        """Whether some value has a leaf that ends beyond the numbers that a float32 has."""
        furthest = max(abs(self.first), abs(self.first + self.counts.size))
        return self.counts.size > 0 and furthest * _power_of_two(self.exponent) > _LARGEST_FLOAT32

    def ranked(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return, for each rank from 1 on, the lower edge of the leaf that holds that value.

        The value itself is less than one leaf above it, and equal to it where it is a multiple of the width.
        """
        at = np.searchsorted(self.counts.cumsum(), ranks)
        width = _power_of_two(self.exponent)
        edges = [(self.first + int(each)) * width for each in at]
        # The edge below the smallest float64 is none.
        return np.array([float(max(edge, _SMALLEST)) for edge in edges])


def share_below(column: ColumnSums, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a column's values below each edge, as if they lay evenly in each leaf."""
    passed = np.concatenate([[0], column.counts.cumsum()])
    with np.errstate(over="ignore"):
        places = np.ldexp(edges, -column.exponent) - float(column.first)
    return np.asarray(np.interp(places, np.arange(passed.size), passed) / max(1, column.count))


def sums_of(chunks: Callable[[], Iterator[Table]]) -> list[ColumnSums]:
    """Return the sums of each column of a table [rows, columns] whose chunks each call gives anew.

    Values that are not finite count as missing. A value outside of the range that the first pass saw, where
    the chunks differ from pass to pass, is counted at its end.
    """
    lowest, highest = _extremes(chunks())
    windows = [
        window_of(float(low), float(high)) if low <= high else NOTHING
        for low, high in zip(lowest, highest, strict=True)
    ]
    columns = len(windows)
    exponents = np.array([window.exponent for window in windows], np.int64)
    firsts = np.array([window.first for window in windows], np.float64)
    counts = np.zeros((columns, LEAVES), np.int64)
    missing, totals, squares = np.zeros(columns, np.int64), [0] * columns, [0] * columns
    for chunk in _floats(chunks()):
        is_there = np.isfinite(chunk) & (lowest <= highest)
        missing += (~is_there).sum(axis=0)
        clipped = np.clip(np.where(is_there, chunk, lowest), lowest, highest)
        with np.errstate(invalid="ignore"):
            scaled = np.ldexp(clipped, -exponents)
            edges = np.floor(scaled)
            leaves, within = edges - firsts, scaled - edges
        leaves[~is_there] = within[~is_there] = 0.0
        whole = leaves.astype(np.int64)
        places = (whole + LEAVES * np.arange(columns))[is_there]
        counts += np.bincount(places, minlength=counts.size).reshape(counts.shape)
        y = (whole << FRACTION_BITS) + np.rint(np.ldexp(within, FRACTION_BITS)).astype(np.int64)
        high, low = y >> LOW_BITS, y & (1 << LOW_BITS) - 1
        parts = (each.sum(axis=0).tolist() for each in (y, high * high, high * low, low * low))
        for at, (total, high_2, both, low_2) in enumerate(zip(*parts, strict=True)):
            totals[at] += total
            squares[at] += (high_2 << 2 * LOW_BITS) + (both << LOW_BITS + 1) + low_2
    return [
        ColumnSums(
            int(missing[at]),
            exponent=window.exponent,
            first=window.first,
            counts=counts[at, : window.leaves],
            unit=window.exponent - FRACTION_BITS,
            total=totals[at],
            squares=squares[at],
        ).trimmed()
        for at, window in enumerate(windows)
    ]


def is_of_input(column: str, name: str) -> bool:
    """Tell whether the name of a column is that of an input's: of any for an empty name."""
    return not name or column == name or column.startswith(f"{name}/")


def _extremes(chunks: Iterator[Table]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and the largest finite value of each column; inf and -inf without any."""
    lowest: NDArray[np.float64] = np.full((), np.inf)
    highest: NDArray[np.float64] = np.full((), -np.inf)
    for chunk in _floats(chunks):
        is_there = np.isfinite(chunk)
        lowest = np.minimum(lowest, np.where(is_there, chunk, np.inf).min(axis=0))
        highest = np.maximum(highest, np.where(is_there, chunk, -np.inf).max(axis=0))
    return lowest, highest


def _floats(chunks: Iterator[Table]) -> Iterator[NDArray[np.float64]]:
    """Yield chunks as float64 of a size that some copies of are no burden; none is empty."""
    for chunk in chunks:
        at_once = max(1, min(MOST_ROWS_AT_ONCE, CHUNK_VALUES // max(1, chunk.shape[1])))
        for start in range(0, len(chunk), at_once):
            yield chunk[start : start + at_once].astype(np.float64)


def _power_of_two(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)
