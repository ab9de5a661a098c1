"""The updates that wait for one sum, and what they come to under their masks. Pure."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fluffle.codecs.masked import MaskedVector
from fluffle.record import Rank
from fluffle.secure.closing import MOST_UPDATES, ClosedUpdate, CloseRecord
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.sums import SummedUpdate, SumRecord
from fluffle.update import UpdateId, WeightUpdate


def share_of_one(buffer_size: int, fewest_workers: int) -> int:
    """Return how many updates one worker may have in a buffer."""
    return max(1, buffer_size // fewest_workers)


@dataclass(eq=False)
class MaskedBuffer:
    """A buffer of masked updates.

    It is full with `buffer_size` of them, but the helpers open it only with updates of at least
    `fewest_workers`, none of which has more than half of the weight. So one worker gives at most its equal
    share of a full buffer.
    """

    plan: SecurePlan
    buffer_size: int
    fewest_workers: int
    updates: list[ClosedUpdate] = field(default_factory=list)
    _facts: list[SummedUpdate] = field(default_factory=list)
    _total: Residues | None = None

    def __contains__(self, update: UpdateId) -> bool:
        return any(each.id == update for each in self.updates)

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def workers(self) -> set[str]:
        """The workers of the updates."""
        return {each.id.worker for each in self.updates}

    @property
    def share_of_one(self) -> int:
        """How many updates one worker may have."""
        return share_of_one(self.buffer_size, self.fewest_workers)

    def has_room_for(self, worker: str, factor: int) -> bool:
        """Return whether an update of this worker and this weight may come into this buffer."""
        own = sum(each.id.worker == worker for each in self.updates)
        weight = factor + sum(each.factor for each in self.updates)
        is_below = weight <= self.buffer_size * self.plan.greatest and len(self.updates) < MOST_UPDATES
        return is_below and own < self.share_of_one

    def add(self, update: WeightUpdate, factor: int, *, now: float, published_at: float) -> None:
        """Add an update, whose vector is masked, with an integer weight."""
        if not isinstance(update.vector, MaskedVector):
            raise TypeError(f"the vector of {update.id} is not masked")
        if self._total is None:
            self._total = np.zeros(update.vector.size, np.uint32)
        add_multiple(self._total, update.vector.residues, factor)
        self.updates.append(ClosedUpdate(update.id, update.base_term, update.base_version, factor))
        self._facts.append(
            SummedUpdate(
                update.train_s,
                published_at,
                now,
            )
        )

    def why_not(self) -> str:
        """Return why the helpers would not open what is there, in words; empty when they would."""
        weights: Counter[str] = Counter()
        for each in self.updates:
            weights[each.id.worker] += each.factor
        if len(weights) < self.fewest_workers:
            return f"there are updates of {len(weights)} workers, and a sum needs {self.fewest_workers}"
        for worker, weight in weights.items():
            if 2 * weight > weights.total():
                return f"{worker} has {weight} of the weight of {weights.total()}, more than half"
        return ""

    def closed(
        self, *, federation: str, number: int, previous: str, rank: Rank, asked: tuple[str, ...]
    ) -> SumRecord:
        """Return what is there as a sum for the version of this rank. Raises ValueError when it is empty."""
        if self._total is None:
            raise ValueError("an empty buffer has no sum")
        close = CloseRecord(
            federation=federation,
            epoch=self.plan.epoch,
            number=number,
            previous=previous,
            term=rank.term,
            version=rank.version,
            size=self._total.size,
            bits=self.plan.modulus_bits,
            greatest=self.plan.greatest,
            asked=asked,
            updates=tuple(self.updates),
        )
        return SumRecord(close=close, plan=self.plan, updates=tuple(self._facts), residues=self._total)
