"""The updates that wait for one sum, and what they come to under their masks. Pure."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fluffle.codecs.masked import MaskedVector
from fluffle.record import Rank
from fluffle.secure.closing import MOST_UPDATES, ClosedUpdate, CloseRecord
from fluffle.secure.modulus import Residues
from fluffle.secure.plan import SecurePlan
from fluffle.secure.sums import SummedUpdate, SumRecord
from fluffle.survey.shape import SurveyShape
from fluffle.update import UpdateId, WeightUpdate


def share_of_one(buffer_size: int, fewest_workers: int) -> int:
    """Return how many updates one worker may have in a buffer: its equal share, and at most half of them."""
    return max(1, min(-(-buffer_size // fewest_workers), buffer_size // 2))


@dataclass(eq=False)
class MaskedBuffer:
    """A buffer of masked updates.

    It is full with `buffer_size` of them, but the helpers open it only with updates of at least
    `fewest_workers`, none of which has more than half of the weight. So one worker gives at most its equal
    share of a full buffer, and places are kept for workers that are missing. Where a worker has more than
    half of the weight of a full buffer, others may give more.
    """

    plan: SecurePlan
    buffer_size: int
    fewest_workers: int
    updates: list[ClosedUpdate] = field(default_factory=list)
    # Of the answers to a survey: what the first one said of its data.
    shape: SurveyShape | None = None
    _weights: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _weight: int = 0
    _ids: set[UpdateId] = field(default_factory=set)
    _facts: list[SummedUpdate] = field(default_factory=list)
    _total: Residues | None = None

    def __contains__(self, update: UpdateId) -> bool:
        return update in self._ids

    def __len__(self) -> int:
        return len(self.updates)

    def has_one_of(self, worker: str) -> bool:
        """Return whether an update of a worker is there."""
        return worker in self._counts

    @property
    def is_full(self) -> bool:
        """Whether there are as many as belong into it."""
        return len(self.updates) >= self.buffer_size

    @property
    def share_of_one(self) -> int:
        """How many updates one worker may have."""
        return share_of_one(self.buffer_size, self.fewest_workers)

    def has_room_for(self, worker: str, factor: int) -> bool:
        """Return whether an update of this worker and this weight may come into this buffer."""
        own, weight = self._counts[worker], self._weight + factor
        # A sum of more could overflow.
        if weight > self.buffer_size * self.plan.greatest or len(self.updates) >= MOST_UPDATES:
            return False
        is_at_most_half = 2 * (self._weights[worker] + factor) <= weight
        if self.is_full:
            return is_at_most_half
        missing = self.fewest_workers - len(self._counts.keys() | {worker})
        if own and len(self.updates) + missing >= self.buffer_size:
            return False
        is_within_share = own < max(1, self.buffer_size // self.fewest_workers)
        return is_within_share or (own < self.share_of_one and is_at_most_half)

    def add(self, update: WeightUpdate, factor: int, *, now: float, published_at: float) -> None:
        """Add an update, whose vector is masked, with an integer weight."""
        if not isinstance(update.vector, MaskedVector):
            raise TypeError(f"the vector of {update.id} is not masked")
        if self._total is None:
            self._total = np.zeros(update.vector.size, np.uint32)
            self.shape = update.shape
        update.vector.add_multiple_to(self._total, factor)
        self.updates.append(ClosedUpdate(update.id, update.base_term, update.base_version, factor))
        self._ids.add(update.id)
        self._counts[update.id.worker] += 1
        self._weights[update.id.worker] += factor
        self._weight += factor
        self._facts.append(
            SummedUpdate(
                update.train_s,
                published_at,
                now,
                update.released,
            )
        )

    def why_not(self) -> str:
        """Return why the helpers would not open what is there, in words; empty when they would."""
        if (count := len(self._weights)) < self.fewest_workers:
            return f"there are updates of {count} workers, and a sum needs {self.fewest_workers}"
        for worker, weight in self._weights.items():
            if 2 * weight > self._weight:
                return f"{worker} has {weight} of the weight of {self._weight}, more than half"
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
            honest=self.plan.honest,
        )
        return SumRecord(
            close=close, plan=self.plan, updates=tuple(self._facts), shape=self.shape, residues=self._total
        )
