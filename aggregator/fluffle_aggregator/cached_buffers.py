"""Buffers of strategies that keep each worker's last update: what they make of it at a step. Pure.

They are used as the accumulators of accumulators.py are, and also learn who sent an update. Each step is made
of all workers' updates, so it is scaled by K / n for K updates in the buffer and n workers in the cache, and
by 1 at most: n updates then move the model by about one mean of all workers, however small the buffer is.
Where workers send a part of the model alone, K and n count those that have the element.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fluffle.codecs.tail import add_from
from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle_aggregator.accumulators import EMPTY, NOTHING_HELD, RunningSum
from fluffle_aggregator.sections import Coverage, Section, Totals, Weight
from fluffle_aggregator.update_cache import Keeping, Kept, UpdateCache, add_scaled_updates, scaled, shares_in

NONE_KEPT: Kept = {}


@dataclass(frozen=True, slots=True, eq=False)
class CacheMean:
    """The mean of all kept updates, or of those of this round."""

    cache: UpdateCache
    coverage: Coverage = EMPTY

    @property
    def totals(self) -> Totals:
        """What the updates of the buffer count together."""
        return self.coverage.totals

    def adding_from(self, worker: str, vector: CompressedVector, weight: Weight, at: int) -> "CacheMean":
        """Return the buffer with one more update of a worker; see UpdateCache.replace."""
        self.cache.replace(worker, scaled(vector, weight.scale), weight.factor, at)
        one = Totals(weight.factor, weight.divisor, weight.mixing, 1, weight.staleness)
        return CacheMean(self.cache, self.coverage.adding(vector.start, one))

    def sections(self) -> list[Section]:
        """Return the sections that an update of the buffer and one in the mean have."""
        return _sections(self.coverage, self.cache)

    def close(self) -> Vector:
        """Return the delta. Raises ValueError without an update."""
        if not self.totals.count:
            raise NOTHING_HELD
        sections = self.sections()
        delta = self.cache.mean(sections)
        for section in sections:
            share = min(1.0, section.totals.count / self.cache.workers_with(section))
            part = delta[section.elements]
            np.multiply(part, np.float32(share), out=part)
        return delta


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """The mean of what is new in each update against the kept one of its worker, plus the mean of all kept.

    `calibration` is the part of the news that is taken, and `most` the most that the sum is scaled by.
    `kept` are the updates that were kept before this buffer, and `replaced` the weights of those that came in
    the place of these, by worker, with the first element that they have.
    """

    cache: UpdateCache
    calibration: float = 1.0
    most: float = 1.0
    news: RunningSum = field(default_factory=RunningSum)
    kept: Kept | None = None
    replaced: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def totals(self) -> Totals:
        """What the updates of the buffer count together."""
        return self.news.totals

    def adding_from(self, worker: str, vector: CompressedVector, weight: Weight, at: int) -> "Calibrated":
        """Return the buffer with one more update of a worker; see UpdateCache.replace."""
        kept = self.cache.in_mean() if self.kept is None else self.kept
        news = self.news.adding(vector, weight)
        newest = scaled(vector, weight.scale)
        before, replaced = self.cache.replace(worker, newest, weight.factor, at), self.replaced
        if before and worker in kept and before.vector is kept[worker].vector:
            # Subtracted in `close`, in one pass with the mean.
            replaced = {**replaced, worker: (weight.factor, vector.start)}
        elif before and news.total is not None:
            add_from(vector.start, before.vector, news.total, -weight.factor)
        return Calibrated(self.cache, self.calibration, self.most, news, kept, replaced)

    def sections(self) -> list[Section]:
        """Return the sections that an update of the buffer has."""
        return _sections(self.news.coverage, self.cache, self.kept or {})

    def close(self) -> Vector:
        """Return the delta. Raises ValueError without an update."""
        if self.kept is None:
            raise NOTHING_HELD
        sections, delta = self.sections(), self.news.close()
        scales = [min(self.most, each.totals.count / self.cache.workers_with(each)) for each in sections]
        shares = [shares_in(self.kept, section) for section in sections]
        scaled = [
            (
                each.vector,
                [
                    scale * (share.get(worker, 0.0) - self._of_news(worker, section))
                    for section, scale, share in zip(sections, scales, shares, strict=True)
                ],
            )
            for worker, each in self.kept.items()
        ]
        add_scaled_updates(delta, sections, scaled, keep=[scale * self.calibration for scale in scales])
        return delta

    def _of_news(self, worker: str, section: Section) -> float:
        """Return by how much a worker's kept update is less new in a section: 0 if nothing came for it."""
        factor, start = self.replaced.get(worker, (0.0, 0))
        return self.calibration / section.totals.divisor * factor if start <= section.start else 0.0


def _sections(coverage: Coverage, cache: UpdateCache, kept: Kept = NONE_KEPT) -> list[Section]:
    """Return the sections that an update of a buffer and one in the cache have."""
    starts = [
        *(each.vector.start for each in cache.updates.values()),
        *(e.vector.start for e in kept.values()),
    ]
    return [each for each in coverage.sections(cache.size, starts) if cache.workers_with(each)]


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
