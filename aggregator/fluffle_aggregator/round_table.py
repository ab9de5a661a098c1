"""The workers' updates by rounds, of which each worker makes one step: the tables of Ringleader ASGD. Pure.

Two tables hold the mean of each worker's updates: `current`, from which steps are made, and `coming`, which
collects for the next round. A round begins with the arrival that completes `coming`: each worker of the round
before has sent something. `coming` then becomes `current`, and each of its workers makes one step with its
next arrival; what else it sends in that time is for the next round. Nothing is discarded.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from fluffle.codecs.tail import tail_of
from fluffle.compression import CompressedVector, compress, decompressed
from fluffle.record import CachedUpdate
from fluffle_aggregator.update_cache import Keeping, Kept, UpdateCache

# The stages of an update that is kept: its worker's step of this round is to come, or is made; or it is for
# the next round. Updates that are not kept in rounds have 0.
TO_COME, MADE, NEXT_ROUND = 1, 2, 3
# A round that waits for a worker is told of when the others have sent so many times as many updates as there
# are workers, and again when that has doubled.
WAIT_TOLD_AFTER: Final = 5


class RoundTable(UpdateCache):
    """The two tables: `updates` are the current one, whose mean steps are made of, and `coming` is the other.

    What is kept of a worker is the weighted mean of its updates.
    """

    def __init__(
        self,
        keeping: Keeping,
        size: int,
        updates: Iterable[CachedUpdate] = (),
        *,
        most_workers: int | None = None,
    ) -> None:
        """Go on from what another leader has kept; see UpdateCache."""
        kept = tuple(updates)
        current = (each for each in kept if each.stage != NEXT_ROUND)
        coming = (each for each in kept if each.stage == NEXT_ROUND)
        super().__init__(keeping, size, current, most_workers=most_workers)
        self.coming = {each.worker: replace(each, vector=each.vector.owned()) for each in coming}
        # Whether the last arrival makes a step.
        self._is_due = False

    def kept(self) -> tuple[CachedUpdate, ...]:
        """See UpdateCache."""
        return (*self.updates.values(), *self.coming.values())

    def replace(self, worker: str, vector: CompressedVector, weight: float, at: int) -> None:
        """Add a worker's update to the table that it is for, and begin the next round if it is time to."""
        update = CachedUpdate(worker, weight, at, self._keeping.codec, vector)
        before = self.updates.get(worker)
        self._is_due = before is not None and before.stage == TO_COME
        if before and self._is_due:
            self.updates[worker] = replace(self._added(before, update), stage=MADE)
        else:
            after = self._added(self.coming.get(worker), update)
            self.coming[worker] = replace(after, stage=NEXT_ROUND)
        self._forget(at)
        is_over = all(each.stage == MADE for each in self.updates.values())
        if is_over and self.coming and self.updates.keys() <= self.coming.keys():
            self._begin_round(worker)

    def in_mean(self) -> Kept:
        """Return what the mean over all workers of this round is made of; nothing when no step is due."""
        return super().in_mean() if self._is_due else {}

    def _begin_round(self, worker: str) -> None:
        """Let the next round begin with the step of the worker that was waited for."""
        self.updates = {
            name: replace(each, stage=MADE if name == worker else TO_COME)
            for name, each in self.coming.items()
        }
        self.coming = {}
        self._is_due = True

    def _added(self, before: CachedUpdate | None, update: CachedUpdate) -> CachedUpdate:
        """Return the weighted mean of a worker's updates with one more; its weight is their mean weight.

        A worker that now trains another part of the model begins anew.
        """
        if before is None or before.vector.start != update.vector.start:
            kept = self._keeping.compressed(update.vector, update.at)
            return replace(update, weight=float(np.float32(update.weight)), vector=kept)
        weights, count = before.weight * before.count + update.weight, before.count + 1
        share = update.weight / weights
        mean = decompressed(before.vector.tail)
        np.multiply(mean, np.float32(1.0 - share), out=mean)
        update.vector.tail.add_to(mean, share)
        kept = tail_of(update.vector.size, compress(update.codec, mean, np.random.default_rng(update.at)))
        return replace(update, weight=float(np.float32(weights / count)), vector=kept, count=count)

    def _forget(self, now: int) -> None:
        """Wait no longer for a worker that has left, or for which there is no room."""
        last = {each.worker: each.at for each in self.kept()}
        oldest = min(last, key=last.__getitem__)
        why = self._keeping.why_forget(last[oldest], now, len(last), self._most_workers)
        if not why:
            times, rest = divmod(now - last[oldest], WAIT_TOLD_AFTER * len(last))
            if rest == 0 and times.bit_count() == 1 and self._waits_for(oldest):
                self._waits.append((oldest, now - last[oldest]))
            return
        self.coming.pop(oldest, None)
        self.forgotten.append((oldest, why))
        self.updates.pop(oldest, None)

    def _waits_for(self, worker: str) -> bool:
        """Tell whether the round cannot go on, or the next one not begin, without this worker."""
        of_round = self.updates.get(worker)
        return of_round is not None and (of_round.stage == TO_COME or worker not in self.coming)
