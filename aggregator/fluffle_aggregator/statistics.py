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

Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StatisticsBuffer:
    """The statistics of the updates since the last step.

    They are a weighted sum in float64, or with `reduce`, which turns [count, size] into [size], the values
    of each update.
    """

    reduce: Callable[[Float64s], Float64s] | None = None
    rows: tuple[Vector | Float64s, ...] = ()
    weight: float = 0.0
    mixing: float = 0.0
    count: int = 0

    def adding(self, statistics: Vector, *, weight: float, mixing: float) -> "StatisticsBuffer":
        """Return the buffer with the statistics (float32 [size]) of one more update.

        `weight` is more than 0. `mixing`, in (0, 1], is how far this update alone would move the statistics.
        """
        if not statistics.size:
            return self
        if self.reduce:
            rows = (*self.rows, statistics.copy())
        else:
            total = self.rows[0] if self.rows else np.zeros(statistics.size)
            rows = (total + np.multiply(statistics, weight, dtype=np.float64),)
        return StatisticsBuffer(self.reduce, rows, self.weight + weight, self.mixing + mixing, self.count + 1)

    def merged_into(self, statistics: Vector) -> Vector:
        """Return (1 - a) * x + a * m, where a is the mean of the mixings.

        m is (sum of w_i * v_i) / (sum of w_i), or what `reduce` makes of the values. Without an update in the
        buffer, or without statistics, the same values come back.
        """
        if not self.rows or not statistics.size:
            return statistics
        a = self.mixing / self.count
        merged = (
            self.reduce(np.stack(self.rows).astype(np.float64)) if self.reduce else self.rows[0] / self.weight
        )
        # In float64, which is exact enough that rounding to float32 leaves no value's range.
        return (np.multiply(statistics, 1.0 - a, dtype=np.float64) + a * merged).astype(np.float32)
