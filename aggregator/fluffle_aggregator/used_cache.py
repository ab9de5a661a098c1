"""The last update of each worker, each used up as the model moves along it. Pure.

A slow worker's update is used in many steps before the next one comes. Used in full each time, it moves the
model further than the worker meant, and the model swings to and fro. So each kept update counts less, the
further the model has moved along it since it came; once that is as far as the limit says, it counts no more.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle.vector_math import matching_blocks, scratch_block
from fluffle_aggregator.update_cache import Keeping, UpdateCache

# An update that the model has moved against counts twice at most.
MOST: Final = 2.0
# Processors round a product of vectors differently: with six decimals they mostly agree.
DECIMALS: Final = 6


class UsedCache(UpdateCache):
    """The last update of each worker; `limit` is how far, in its own length, the model follows each.

    Worker i's update h_i counts weight * (1 - used / limit), from 0 to 2 times its weight, where used is the
    sum of <step, h_i> / <h_i, h_i> over the steps since it came.
    """

    def __init__(
        self,
        keeping: Keeping,
        total: Vector,
        updates: Iterable[CachedUpdate] = (),
        *,
        most_workers: int | None = None,
        limit: float = 1.0,
    ) -> None:
        """Go on from these updates; see UpdateCache. `total` holds the sum that the last step was made of."""
        super().__init__(keeping, total, updates, most_workers=most_workers)
        self._limit = limit
        self._used = {each.worker: each.used for each in self.updates.values()}
        self._squares = {each.worker: squared_length(each) for each in self.updates.values()}

    def kept(self) -> tuple[CachedUpdate, ...]:
        """See Cache."""
        return tuple(replace(each, used=self._used[each.worker]) for each in self.updates.values())

    def mean(self) -> Vector:
        """Return the mean of what is left of all updates, float32 of the model's size."""
        weight = sum(each.weight for each in self.updates.values())
        left = [(each, self._left(each.worker) * each.weight) for each in self.updates.values()]
        weighted_sum(self.total, [(each, scale) for each, scale in left if scale])
        return self.total / np.float32(weight) if self.updates else np.zeros_like(self.total)

    def follow(self, step: Vector) -> None:
        """See Cache."""
        for each in self.updates.values():
            if square := self._squares[each.worker]:
                used = self._used[each.worker] + product(step, each) / square
                self._used[each.worker] = round(used, DECIMALS)

    def _left(self, worker: str) -> float:
        return min(max(1.0 - self._used[worker] / self._limit, 0.0), MOST)

    def _put_in(self, after: CachedUpdate, _before: CachedUpdate | None) -> None:
        """Begin to use an update; the sum is made anew for each step."""
        self._used[after.worker] = 0.0
        self._squares[after.worker] = squared_length(after)

    def _dropped(self, worker: str) -> None:
        del self._used[worker], self._squares[worker]


def weighted_sum(total: Vector, scaled: Iterable[tuple[CachedUpdate, float]]) -> None:
    """Overwrite `total` with the sum of scale * update, block by block."""
    factors, walks = [], []
    for each, scale in scaled:
        factors.append(np.float32(scale))
        walks.append(each.vector.blocks())
    scratch = scratch_block(total.size)
    blocks = zip(*walks, strict=True) if walks else ([] for _ in matching_blocks(total))
    for (sums,), values in zip(matching_blocks(total), blocks, strict=True):
        sums[:] = 0.0
        for factor, block in zip(factors, values, strict=True):
            np.add(sums, np.multiply(block, factor, out=scratch[: block.size]), out=sums)


def product(vector: Vector, update: CachedUpdate) -> float:
    """Return the inner product of a vector and an update."""
    pairs = zip(matching_blocks(vector), update.vector.blocks(), strict=True)
    return sum(float(np.dot(part, block)) for (part,), block in pairs)


def squared_length(update: CachedUpdate) -> float:
    """Return the inner product of an update with itself."""
    return sum(float(np.dot(block, block)) for block in update.vector.blocks())
