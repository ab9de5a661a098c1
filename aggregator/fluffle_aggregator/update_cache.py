"""The last update of each worker, kept from step to step, and the sum of them. Pure.

A strategy that keeps them can make a step of all workers whenever one of them sends an update: a slow worker
then counts as much as a fast one. What is kept is what the head queue holds, so that the next leader goes on
with the same bits.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.int8 import Int8Vector
from fluffle.compression import CompressedVector, compress, decompressed, most_bytes
from fluffle.model import Vector
from fluffle.record import CachedUpdate
from fluffle.vector_math import matching_blocks, scratch_block

# The names of the weighted sum of all kept updates among the moments: a float32 vector of the model's size.
SUM: Final = "cached_sum"
SUM_OF_ROUND: Final = "round_sum"
SUM_OF_UNUSED: Final = "unused_sum"
KEPT_AS_IT_CAME: Final = {"float32": Float32Vector, "int8": Int8Vector}


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a strategy keeps the updates.

    `codec` is float32 or int8. A worker is forgotten when, since its last update, the others have sent
    `forget_after` times as many updates as there are workers. With `in_rounds` two updates of each worker are
    kept: one of this round, and one of the next. With `uses_up` they are used up, see used_cache.py.
    """

    codec: str = "int8"
    forget_after: float = 100.0
    in_rounds: bool = False
    uses_up: bool = False

    def __str__(self) -> str:
        return f"cache={self.codec}, forget_after={self.forget_after:g}"

    @property
    def sum_name(self) -> str:
        """The name of the sum of the kept updates among the moments."""
        if self.in_rounds:
            return SUM_OF_ROUND
        return SUM_OF_UNUSED if self.uses_up else SUM

    def size_bytes(self, size: int) -> int:
        """Return how many bytes are kept of one worker, of a model of `size` elements."""
        return most_bytes(self.codec, size) * (2 if self.in_rounds else 1)

    def fits(self, updates: Iterable[CachedUpdate], size: int) -> bool:
        """Return whether these can be gone on with, by a model of `size` elements."""
        return all(each.codec == self.codec and each.vector.size == size for each in updates)

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


class Cache(Protocol):
    """What a strategy keeps of the workers.

    `forgotten` are the workers that were forgotten since somebody last took these away, and why.
    """

    forgotten: list[tuple[str, str]]

    def __len__(self) -> int:
        """Return over how many workers the mean is."""

    def kept(self) -> tuple[CachedUpdate, ...]:
        """Return all that the next leader needs, in its order."""

    def replace(self, worker: str, vector: CompressedVector, weight: float, at: int) -> CachedUpdate | None:
        """Take in a worker's update, and return what it takes the place of; see UpdateCache."""

    def mean(self) -> Vector:
        """Return the weighted mean that a step is made of, float32 of the model's size."""

    def follow(self, step: Vector) -> None:
        """Learn by what the model has moved."""


class UpdateCache:
    """The last update of each worker.

    `total` is the sum of weight * update over them, float32 of the model's size; it is changed in place.
    `most_workers` is the largest number of updates that fit into their message.
    """

    def __init__(
        self,
        keeping: Keeping,
        total: Vector,
        updates: Iterable[CachedUpdate] = (),
        *,
        most_workers: int | None = None,
    ) -> None:
        """Go on from the updates whose sum is `total`."""
        self._keeping = keeping
        self._most_workers = most_workers
        self.total = total
        # The longest kept first.
        self.updates: dict[str, CachedUpdate] = {
            each.worker: replace(each, vector=each.vector.owned()) for each in updates
        }
        # Workers that were forgotten since somebody last took these away, and why.
        self.forgotten: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.updates)

    def kept(self) -> tuple[CachedUpdate, ...]:
        """See Cache."""
        return tuple(self.updates.values())

    def replace(self, worker: str, vector: CompressedVector, weight: float, at: int) -> CachedUpdate | None:
        """Keep a worker's update in place of its last one, and return that; None if there was none.

        `weight` is more than 0. `at` is the number of updates that the model contains with this one: it
        grows with each update.
        """
        before = self.updates.pop(worker, None)
        # Those that came longest ago stand first.
        kept = self._keeping.compressed(vector, at)
        after = CachedUpdate(worker, float(np.float32(weight)), at, self._keeping.codec, kept)
        self.updates[worker] = after
        self._put_in(after, before)
        self._forget(at)
        return before

    def mean(self) -> Vector:
        """Return the weighted mean of all updates that are kept, float32 of the model's size."""
        weight = sum(each.weight for each in self.updates.values())
        return self.total / np.float32(weight) if self.updates else np.zeros_like(self.total)

    def follow(self, step: Vector) -> None:
        """See Cache: what is kept does not depend on it."""

    def _put_in(self, after: CachedUpdate, before: CachedUpdate | None) -> None:
        """Let the sum contain an update in the place of its worker's last one."""
        if before:
            exchange(self.total, before, after)
        else:
            after.vector.add_to(self.total, after.weight)

    def _forget(self, now: int) -> None:
        """Drop those that are too old, or for which there is no room."""
        before = len(self)
        for first in tuple(self.updates.values()):
            why = self._keeping.why_forget(first.at, now, len(self), self._most_workers)
            if not why:
                break
            del self.updates[first.worker]
            self._dropped(first.worker)
            self.forgotten.append((first.worker, why))
        if len(self) < before:
            # Anew, so that nothing of what was rounded away stays in the sum.
            sum_up(self.total, self.updates.values())

    def _dropped(self, worker: str) -> None:
        """Forget what else is known of a worker."""


def sum_up(total: Vector, updates: Iterable[CachedUpdate]) -> None:
    """Overwrite `total` with the sum of weight * update."""
    total[:] = 0.0
    for each in updates:
        each.vector.add_to(total, each.weight)


def exchange(total: Vector, before: CachedUpdate, after: CachedUpdate) -> None:
    """Take an update out of the weighted sum and put another one in, in one pass over the sum."""
    out, put_in = np.float32(before.weight), np.float32(after.weight)
    scratch = scratch_block(total.size)
    blocks = zip(before.vector.blocks(), after.vector.blocks(), strict=True)
    for (sums,), (old, new) in zip(matching_blocks(total), blocks, strict=True):
        product = scratch[: sums.size]
        np.subtract(sums, np.multiply(old, out, out=product), out=sums)
        np.add(sums, np.multiply(new, put_in, out=product), out=sums)
