"""The last update of each worker, kept from step to step. Pure.

A strategy that keeps them can make a step of all workers whenever one of them sends an update: a slow worker
then counts as much as a fast one. What is kept is what the head queue holds, so that the next leader goes on
with the same bits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.int8 import Int8Vector
from fluffle.compression import CompressedVector, compress, decompressed, most_bytes
from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle.vector_math import matching_blocks, scratch_block

# Kept updates by worker, each with its share in their mean.
Shares = Mapping[str, tuple[CompressedVector, float]]
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
        if type(vector) is KEPT_AS_IT_CAME[self.codec]:
            return vector.owned()
        values = vector.values if isinstance(vector, Float32Vector) else decompressed(vector)
        return compress(self.codec, values, np.random.default_rng(at))


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

    def shares(self) -> Shares:
        """Return the updates of which the mean is made, by worker, each with its share in it."""
        weight = sum(each.weight for each in self.updates.values())
        return {worker: (each.vector, self._counted(each) / weight) for worker, each in self.updates.items()}

    def mean(self) -> Vector:
        """Return the weighted mean that a step is made of, float32 of the model's size."""
        total = np.zeros(self._size, np.float32)
        add_scaled_updates(total, self.shares().values())
        return total

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
    values = decompressed(vector)
    return Float32Vector.of(np.multiply(values, np.float32(scale), out=values))


def add_scaled_updates(
    total: Vector, scaled: Iterable[tuple[CompressedVector, float]], *, keep: float = 1.0
) -> None:
    """Overwrite `total` with keep * total + the sum of scale * vector.

    Factors are rounded once, to float32, and then all products and sums, in the order of the vectors.
    """
    kept, scratch = np.float32(keep), scratch_block(total.size)
    added = [(vector.blocks(), np.float32(scale)) for vector, scale in scaled if scale]
    for (sums,) in matching_blocks(total):
        if kept != 1:
            np.multiply(sums, kept, out=sums)
        for blocks, factor in added:
            np.add(sums, np.multiply(next(blocks), factor, out=scratch[: sums.size]), out=sums)
