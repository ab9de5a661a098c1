"""Buffers of strategies that keep each worker's last update: what they make of it at a step. Pure.

They are used as the accumulators of accumulators.py are, and also learn who sent an update. Each step is made
of all workers' updates, so it is scaled by K / n for K updates in the buffer and n workers in the cache, and
by 1 at most: n updates then move the model by about one mean of all workers, however small the buffer is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle_aggregator.accumulators import NOTHING_HELD, RunningSum, Weight
from fluffle_aggregator.update_cache import Keeping, Shares, UpdateCache, add_scaled_updates, scaled


@dataclass(frozen=True, slots=True, eq=False)
class CacheMean:
    """The mean of all kept updates, or of those of this round."""

    cache: UpdateCache
    factor: float = 0.0
    divisor: float = 0.0
    count: int = 0
    staleness: int = 0

    def adding_from(self, worker: str, vector: CompressedVector, weight: Weight, at: int) -> "CacheMean":
        """Return the buffer with one more update of a worker; see UpdateCache.replace."""
        self.cache.replace(worker, scaled(vector, weight.scale), weight.factor, at)
        factor, divisor = self.factor + weight.factor, self.divisor + weight.divisor
        staleness = max(self.staleness, weight.staleness)
        return CacheMean(self.cache, factor, divisor, self.count + 1, staleness)

    def close(self) -> Vector:
        """Return the delta. Raises ValueError without an update."""
        if not self.count:
            raise NOTHING_HELD
        delta = self.cache.mean()
        return np.multiply(delta, np.float32(min(1.0, self.count / len(self.cache))), out=delta)


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """The mean of what is new in each update against the kept one of its worker, plus the mean of all kept.

    `calibration` is the part of the news that is taken, and `most` the most that the sum is scaled by.
    `shares` are what the mean of all kept updates was made of before this buffer, and `replaced` the weights
    of the updates that came in the place of these, by worker.
    """

    cache: UpdateCache
    calibration: float = 1.0
    most: float = 1.0
    news: RunningSum = field(default_factory=RunningSum)
    shares: Shares | None = None
    replaced: Mapping[str, float] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """The sum of the updates' weights."""
        return self.news.factor

    @property
    def divisor(self) -> float:
        """The sum of what the updates' weights are divided by."""
        return self.news.divisor

    @property
    def count(self) -> int:
        """The number of updates."""
        return self.news.count

    @property
    def staleness(self) -> int:
        """The greatest staleness of the updates."""
        return self.news.staleness

    def adding_from(self, worker: str, vector: CompressedVector, weight: Weight, at: int) -> "Calibrated":
        """Return the buffer with one more update of a worker; see UpdateCache.replace."""
        shares = self.cache.shares() if self.shares is None else self.shares
        news = self.news.adding(vector, weight)
        kept = scaled(vector, weight.scale)
        before, replaced = self.cache.replace(worker, kept, weight.factor, at), self.replaced
        if before and worker in shares and before.vector is shares[worker][0]:
            # Subtracted in `close`, in one pass with the mean.
            replaced = {**replaced, worker: weight.factor}
        elif before and news.total is not None:
            before.vector.add_to(news.total, -weight.factor)
        return Calibrated(self.cache, self.calibration, self.most, news, shares, replaced)

    def close(self) -> Vector:
        """Return the delta. Raises ValueError without an update."""
        if self.shares is None:
            raise NOTHING_HELD
        delta, scale = self.news.close(), min(self.most, self.count / len(self.cache))
        of_news = self.calibration / self.divisor
        kept = [
            (vector, scale * (share - of_news * self.replaced.get(worker, 0.0)))
            for worker, (vector, share) in self.shares.items()
        ]
        add_scaled_updates(delta, kept, keep=scale * self.calibration)
        return delta


CachedBuffer = CacheMean | Calibrated


class OpenCache(Protocol):
    """What makes a cache that goes on from the updates that another leader has kept."""

    def __call__(
        self,
        keeping: Keeping,
        size: int,
        updates: Iterable[CachedUpdate] = (),
        *,
        most_workers: int | None = None,
    ) -> UpdateCache:
        """Return the cache; see UpdateCache."""


class CachedRule(Protocol):
    """How steps are made of what is kept; as text, its settings. `open` makes the cache."""

    @property
    def open(self) -> OpenCache:
        """What makes the cache."""

    def zero(self, cache: UpdateCache) -> CachedBuffer:
        """Return a buffer that holds no update yet."""


@dataclass(frozen=True, slots=True)
class MeanOfAll:
    """The rule of ace, and of ringleader with its tables: see CacheMean."""

    open: OpenCache = UpdateCache

    def __str__(self) -> str:
        return ""

    def zero(self, cache: UpdateCache) -> CacheMean:
        """See CachedRule."""
        return CacheMean(cache)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The rule of ca2fl and, with a cache of its own, of reuse. `cache_settings` are those of `open`."""

    share: float = 1.0
    open: OpenCache = UpdateCache
    cache_settings: str = ""
    most: float = 1.0

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"calibration={self.share:g}", self.cache_settings)))

    def zero(self, cache: UpdateCache) -> Calibrated:
        """See CachedRule."""
        return Calibrated(cache, self.share, self.most)
