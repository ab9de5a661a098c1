"""The last update of each worker, each used up as the model moves along it. Pure.

A slow worker's update is used in many steps before the next one comes. Used in full each time, it moves the
model further than the worker meant, and the model swings to and fro. So each kept update counts less, the
further the model has moved along it since it came; once that is as far as the limit says, it counts no more.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle.vector_math import inner_product, squared_length
from fluffle_aggregator.update_cache import Keeping, UpdateCache

# An update that the model has moved against counts twice at most.
MOST: Final = 2.0


class UsedCache(UpdateCache):
    """The last update of each worker; `limit` is how far, in its own length, the model follows each.

    Worker i's update h_i counts weight * (1 - used / limit), from 0 to 2 times its weight, where used is the
    sum of <step, h_i> / <h_i, h_i> over the steps since it came.
    """

    def __init__(
        self,
        keeping: Keeping,
        size: int,
        updates: Iterable[CachedUpdate] = (),
        *,
        most_workers: int | None = None,
        limit: float = 1.0,
    ) -> None:
        """Go on from these updates; see UpdateCache."""
        super().__init__(keeping, size, updates, most_workers=most_workers)
        self._limit = limit
        # <h_i, h_i> by the worker, and by when its update came.
        self._squares: dict[tuple[str, int], float] = {}

    def follow(self, step: Vector) -> None:
        """See UpdateCache."""
        known, self._squares = self._squares, {}
        for worker, each in self.updates.items():
            key = worker, each.at
            square = self._squares[key] = known[key] if key in known else squared_length(each.vector.blocks())
            if square:
                along = inner_product(each.vector.blocks(), step)
                # Where products are too large for float32, nobody knows how far: it counts no more.
                moved = along / square if math.isfinite(along) and math.isfinite(square) else math.inf
                self.updates[worker] = replace(each, used=each.used + moved)

    def _counted(self, update: CachedUpdate) -> float:
        """See UpdateCache."""
        return update.weight * min(max(1.0 - update.used / self._limit, 0.0), MOST)
