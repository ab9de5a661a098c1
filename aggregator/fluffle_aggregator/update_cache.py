"""The last update of each worker, kept from step to step. Pure.

A strategy that keeps them can make a step of all workers whenever one of them sends an update: a slow worker
then counts as much as a fast one. What is kept is what the head queue holds, so that the next leader goes on
with the same bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.int8 import Int8Vector
from fluffle.codecs.tail import tail_of
from fluffle.compression import CompressedVector, compress, decompressed, most_bytes
from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle.vector_math import BLOCK_SIZE, matching_blocks, scratch_block
from fluffle_aggregator.sections import Section, overlaps

KEPT_AS_IT_CAME: Final = {"float32": Float32Vector, "int8": Int8Vector}


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a strategy keeps the updates.

    `codec` is float32 or int8. A worker is forgotten when, since its last update, the others have sent
    `forget_after` times as many updates as there are workers. With `in_rounds` two updates of each worker are
    kept: one of this round, and one of the next.
    """

    codec: str = "int8"
    forget_after: float = 100.0
    in_rounds: bool = False

    def __str__(self) -> str:
        return f"cache={self.codec}, forget_after={self.forget_after:g}"

    def size_bytes(self, size: int) -> int:
        """Return how many bytes are kept of one worker, of a model of `size` elements."""
        return most_bytes(self.codec, size) * (2 if self.in_rounds else 1)

    def fits(self, updates: Iterable[CachedUpdate], size: int) -> bool:
        """Return whether these can be gone on with, by a model of `size` elements."""
        return all(
            each.codec == self.codec and each.vector.size == size and (each.stage > 0) == self.in_rounds
            for each in updates
        )

    def why_forget(self, last_at: int, now: int, workers: int, most_workers: int | None) -> str:
        """Return why the worker that came longest ago, at `last_at`, is forgotten; empty if it is not.

        `workers` are kept now, and `most_workers` fit into their message.
        """
        if most_workers is not None and workers > most_workers:
            return f"one message holds the updates of {most_workers} workers, and this one came longest ago"
        if now - last_at > self.forget_after * workers:
            return f"{now - last_at} updates of others have come since it"
        return ""

    def compressed(self, vector: CompressedVector, at: int) -> CompressedVector:
        """Return an update as it is kept; the same update gives the same bits to every leader."""
        known = vector.tail
        if type(known) is KEPT_AS_IT_CAME[self.codec]:
            return vector.owned()
        values = known.values if isinstance(known, Float32Vector) else decompressed(known)
        return tail_of(vector.size, compress(self.codec, values, np.random.default_rng(at)))


@dataclass(frozen=True, slots=True, eq=False)
class InMean:
    """A kept update in the mean of all: `counted` of its weight counts, and all weights divide."""

    vector: CompressedVector
    counted: float
    weight: float


# By worker, the longest kept first.
Kept = Mapping[str, InMean]


class UpdateCache:
    """The last update of each worker, of a model of `size` elements.

    `most_workers` is the largest number of updates that fit into their message. `forgotten` are the workers
    that were forgotten since somebody last took these away, and why.
    """

    def __init__(
        self,
        keeping: Keeping,
        size: int,
        updates: Iterable[CachedUpdate] = (),
        *,
        most_workers: int | None = None,
    ) -> None:
        """Go on from the updates that another leader has kept, the longest kept first."""
        self._keeping = keeping
        self._size = size
        self._most_workers = most_workers
        self.updates = {each.worker: replace(each, vector=each.vector.owned()) for each in updates}
        self.forgotten: list[tuple[str, str]] = []
        self._waits: list[tuple[str, int]] = []

    @property
    def size(self) -> int:
        """The number of elements of the model."""
        return self._size

    def __len__(self) -> int:
        """Return over how many workers the mean is."""
        return len(self.updates)

    def kept(self) -> tuple[CachedUpdate, ...]:
        """Return all that the next leader needs, in its order."""
        return tuple(self.updates.values())

    def replace(self, worker: str, vector: CompressedVector, weight: float, at: int) -> CachedUpdate | None:
        """Keep a worker's update in place of its last one, and return that; None if there was none.

        `weight` is more than 0. `at` is the number of updates that the model contains with this one: it
        grows with each update.
        """
        before = self.updates.pop(worker, None)
        # Those that came longest ago stand first.
        kept = self._keeping.compressed(vector, at)
        self.updates[worker] = CachedUpdate(worker, float(np.float32(weight)), at, self._keeping.codec, kept)
        self._forget(at)
        return before

    def take_waits(self) -> list[tuple[str, int]]:
        """Return the workers for which the model stands still, and how many updates of others have come.

        Each is returned once, and again when that number has doubled.
        """
        found, self._waits = self._waits, []
        return found

    def in_mean(self) -> Kept:
        """Return the updates of which the mean is made."""
        return {
            worker: InMean(each.vector, self._counted(each), each.weight)
            for worker, each in self.updates.items()
        }

    def mean(self, sections: Sequence[Section]) -> Vector:
        """Return their weighted mean over those that have a section: float32 of the model's size."""
        total, kept = np.zeros(self._size, np.float32), self.in_mean()
        shares = [shares_in(kept, section) for section in sections]
        scaled = [
            (each.vector, [share.get(worker, 0.0) for share in shares]) for worker, each in kept.items()
        ]
        add_scaled_updates(total, sections, scaled, keep=[1.0] * len(sections))
        return total

    def workers_with(self, section: Section) -> int:
        """Return how many of the workers have a section of the model."""
        return sum(each.vector.start <= section.start for each in self.updates.values())

    def follow(self, step: Vector) -> None:
        """Learn by what the model has moved; what is kept does not depend on it."""

    def _counted(self, update: CachedUpdate) -> float:
        """Return how much of an update's weight counts in the mean; all weights divide it."""
        return update.weight

    def _forget(self, now: int) -> None:
        """Drop those that are too old, or for which there is no room."""
        for first in self.kept():
            why = self._keeping.why_forget(first.at, now, len(self), self._most_workers)
            if not why:
                break
            del self.updates[first.worker]
            self.forgotten.append((first.worker, why))


def scaled(vector: CompressedVector, scale: float) -> CompressedVector:
    """Return scale * vector; the vector itself for a scale of 1."""
    if scale == 1:
        return vector
    values = decompressed(vector.tail)
    return tail_of(vector.size, Float32Vector.of(np.multiply(values, np.float32(scale), out=values)))


def shares_in(kept: Kept, section: Section) -> dict[str, float]:
    """Return the share of each kept update in the mean over those that have a section; they sum up to 1."""
    has = {worker: each for worker, each in kept.items() if each.vector.start <= section.start}
    weight = sum(each.weight for each in has.values())
    return {worker: each.counted / weight for worker, each in has.items()}


def add_scaled_updates(
    total: Vector,
    sections: Sequence[Section],
    scaled: Iterable[tuple[CompressedVector, Sequence[float]]],
    *,
    keep: Sequence[float],
) -> None:
    """Overwrite `total` with keep * total + the sum of scale * vector in each section.

    `keep`, and the scales of each vector, have a number for each section. Factors are rounded once, to
    float32, and then all products and sums, in the order of the vectors.
    """
    scratch = scratch_block(total.size)
    added = [(vector.blocks(), scales) for vector, scales in scaled if any(scales)]
    for number, (sums,) in enumerate(matching_blocks(total)):
        within = [(at, sums[each], each) for at, each in overlaps(sections, number * BLOCK_SIZE, sums.size)]
        for at, part, _ in within:
            if keep[at] != 1:
                np.multiply(part, np.float32(keep[at]), out=part)
        for blocks, scales in added:
            values = next(blocks)
            for at, part, elements in within:
                if scales[at]:
                    product = np.multiply(values[elements], np.float32(scales[at]), out=scratch[: part.size])
                    np.add(part, product, out=part)
