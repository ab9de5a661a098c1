"""What the leader knows of a sealed model: the encrypted sum, and how far its values may be by now. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from fluffle.codecs.sealed import SealedVector
from fluffle.model import Layout
from fluffle.record import ModelVersion
from fluffle.sealed.part import sealed_part
from fluffle.sealed.plan import ASKED_FOR_VERSIONS, SealedPlan, SealedState
from fluffle.sealed.residues import Residues, add_weighted, packed_view, sum_of_packed, unpack
from fluffle.update import WeightUpdate
from fluffle_aggregator.sealed.sealed_sum import SealedSum


class SealedModel:
    """The sum of all updates since version 0, as ciphertexts that nobody here can read.

    Buffers are added to its packed bytes when a record is made of them: until then the message of the last
    update takes memory too.
    """

    def __init__(
        self, plan: SealedPlan, layout: Layout, state: SealedState, packed: bytes | memoryview
    ) -> None:
        """Go on from what a record says; `packed` is empty before the first update."""
        self.plan, self.state = plan, state
        self.part = sealed_part(layout, plan.only)
        self._packed = packed
        self._added: Residues | None = None

    @property
    def packed(self) -> bytes | memoryview:
        """The bytes of the sum as they stand in the next record; they are never changed in place."""
        if self._added is not None:
            has_sum = len(self._packed) > 0
            size, added = self.part.size, self._added
            self._packed = sum_of_packed(self._packed, size, added) if has_sum else packed_view(added)
            self._added = None
        return self._packed

    @property
    def has_sum(self) -> bool:
        """Whether there is an update in the sum."""
        return self.state.weights > 0

    @classmethod
    def of(cls, record: ModelVersion, plan: SealedPlan | None) -> "SealedModel | None":
        """Return the sealed model of a record; None where nothing is sealed."""
        if plan is None or record.sealed is None:
            return None
        return cls(plan, record.layout, record.sealed, record.sealed_sum)

    def empty_buffer(self) -> SealedSum:
        """Return a buffer that holds no update yet."""
        return SealedSum(self.part, self.plan)

    def add(self, buffer: object, version: int, workers: Sequence[str]) -> None:
        """Add a buffer with updates of these workers to the sum: the version of this number has it.

        When the range of the ciphertexts is used up by half, the last of the workers is asked for a refresh,
        and another one when it has not come a while later.
        """
        if not isinstance(buffer, SealedSum) or buffer.residues is None:
            raise TypeError("only a buffer of sealed updates can be added to a sealed sum")
        self._add(buffer.residues)
        self.state = self.state.with_updates(buffer.weight)
        self.ask_when_due(version, workers)

    def ask_when_due(self, version: int, workers: Sequence[str]) -> None:
        """Let the version of this number ask one of these workers for a refresh, if one is wanted.

        After the one that was asked before it is the turn of the next one in their order.
        """
        state = self.state
        is_asked = state.asked and version < state.asked_at + ASKED_FOR_VERSIONS
        if not workers or is_asked or not state.wants_refresh(self.plan):
            return
        place = workers.index(state.asked) + 1 if state.asked in workers else -1
        self.state = replace(state, asked=workers[place % len(workers)], asked_at=version)

    def refresh(self, update: WeightUpdate) -> None:
        """Make the sum one that was encrypted anew, with the largest value that its worker says."""
        if update.refresh is None or not isinstance(update.vector, SealedVector):
            raise TypeError(f"{update.id} is no refresh")
        self._add(unpack(update.vector.sealed, self.part.size))
        self.state = self.state.refreshed(update.refresh.largest, update.refresh.weights)

    def _add(self, residues: Residues) -> None:
        if self._added is None:
            self._added = residues
        else:
            add_weighted(self._added, residues)

    @property
    def why_over(self) -> str:
        """Why no more updates can be added; empty while they can."""
        if not self.state.is_full(self.plan):
            return ""
        return (
            f"the sealed sum has come to {self.state.largest:.3g}, and its ciphertexts hold no more: export "
            "its model; the aggregator of a new federation that goes on from it sees it"
        )
