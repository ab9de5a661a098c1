"""How statistics are merged: as a weighted mean of values, never as deltas. Pure.

With stale deltas a variance can become negative: from 1.0, four updates that each move it to 0.2 from the
same base sum up to -2.2. A weighted mean of values stays between the smallest and the largest value that came
in, whatever the order of arrivals.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle_aggregator.accumulators import EMPTY, FEWEST_TO_COMPARE
from fluffle_aggregator.sections import Coverage, Section, Totals, Weight

Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StatisticsBuffer:
    """The statistics of the updates since the last step, of a model that has `size` of them.

    They are a weighted sum in float64, or with `reduce`, which turns [count, size] into [size], the values
    of each update.
    """

    size: int
    reduce: Callable[[Float64s], Float64s] | None = None
    rows: tuple[Vector | Float64s, ...] = ()
    coverage: Coverage = EMPTY

    def adding(self, statistics: Vector, weight: Weight) -> "StatisticsBuffer":
        """Return the buffer with the statistics of one more update: the last ones, float32.

        `weight.factor` is more than 0. `weight.mixing`, in (0, 1], is how far this update alone would move
        the statistics.
        """
        if not statistics.size:
            return self
        start = self.size - statistics.size
        if self.reduce:
            rows = (*self.rows, statistics.copy())
        else:
            total: Float64s = np.zeros(self.size) if not self.rows else self.rows[0].astype(np.float64)
            total[start:] += np.multiply(statistics, weight.factor, dtype=np.float64)
            rows = (total,)
        one = Totals(weight.factor, mixing=weight.mixing, count=1)
        return StatisticsBuffer(self.size, self.reduce, rows, self.coverage.adding(start, one))

    def with_sum(self, total: Float64s, weight: Weight) -> "StatisticsBuffer":
        """Return the buffer with one more update of those whose weighted sum, [size], is given each time."""
        if not total.size:
            return self
        one = Totals(weight.factor, mixing=weight.mixing, count=1)
        return StatisticsBuffer(self.size, None, (total,), self.coverage.adding(0, one))

    def merged_into(self, statistics: Vector) -> Vector:
        """Return (1 - a) * x + a * m, where a is the mean of the mixings.

        m is (sum of w_i * v_i) / (sum of w_i), or what `reduce` makes of the values; all of them over the
        updates that have the statistic. One that no update has keeps its value.
        """
        merged = statistics.copy()
        for section in self._sections():
            elements, totals = section.elements, section.totals
            m = self.reduce(self._values(section)) if self.reduce else self.rows[0][elements] / totals.factor
            a = totals.mixing / totals.count
            # In float64, which is exact enough that rounding to float32 leaves no value's range.
            merged[elements] = np.multiply(statistics[elements], 1.0 - a, dtype=np.float64) + a * m
        return merged

    def _sections(self) -> list[Section]:
        """Return the sections that move: with `reduce` those that enough updates have, as in a Stack."""
        fewest = min(FEWEST_TO_COMPARE, len(self.rows)) if self.reduce else 1
        return [each for each in self.coverage.sections(self.size) if each.totals.count >= fewest]

    def _values(self, section: Section) -> Float64s:
        """Return the values of the updates that have a section, float64 [count, elements]."""
        from_end = section.start - self.size
        ends = [row[from_end:] for row in self.rows if row.size >= -from_end]
        return np.stack([end[: section.stop - section.start] for end in ends]).astype(np.float64)
