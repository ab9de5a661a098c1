"""How statistics are merged: as a weighted mean of values, never as deltas. Pure.

With stale deltas a variance can become negative: from 1.0, four updates that each move it to 0.2 from the
same base sum up to -2.2. A weighted mean of values stays between the smallest and the largest value that came
in, whatever the order of arrivals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector


@dataclass(frozen=True, slots=True, eq=False)
class StatisticsBuffer:
    """The statistics of the updates since the last step: their weighted sum, in float64."""

    total: NDArray[np.float64] | None = None
    weight: float = 0.0
    mixing: float = 0.0
    count: int = 0

    def adding(self, statistics: Vector, *, weight: float, mixing: float) -> StatisticsBuffer:
        """Return the buffer with the statistics (float32 [size]) of one more update; the old one is donated.

        `weight` is more than 0. `mixing`, in (0, 1], is how far this update alone would move the statistics.
        """
        total = np.zeros(statistics.size) if self.total is None else self.total
        total += np.multiply(statistics, weight, dtype=np.float64)
        return StatisticsBuffer(total, self.weight + weight, self.mixing + mixing, self.count + 1)

    def merged_into(self, statistics: Vector) -> Vector:
        """Return (1 - a) * x + a * (sum of w_i * v_i) / (sum of w_i), where a is the mean of the mixings.

        Without an update in the buffer, or without statistics, the same values come back.
        """
        if self.total is None or not statistics.size:
            return statistics
        a = self.mixing / self.count
        # In float64, which is exact enough that rounding to float32 leaves no value's range.
        kept = np.multiply(statistics, 1.0 - a, dtype=np.float64)
        return (kept + (a / self.weight) * self.total).astype(np.float32)
