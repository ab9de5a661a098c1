"""What the leader's model knows of secure aggregation from one sum to the next. Pure."""

from fluffle.errors import ConfigError
from fluffle.record import ModelVersion
from fluffle.secure.closing import CloseRecord
from fluffle.secure.plan import LastSum, SecurePlan
from fluffle.secure.surveyed import survey_plan
from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate
from fluffle_aggregator.secure.masked_buffer import MaskedBuffer

NOT_OPENED = "not-opened"


def require_newest_epoch(asked: SecurePlan | None, before: SecurePlan | None) -> None:
    """Raise ConfigError when this aggregator's registry is older than the federation's, or another one."""
    if asked and before and asked.epoch < before.epoch:
        raise ConfigError(
            f"the registry of this aggregator is of epoch {asked.epoch}, and the federation is in epoch "
            f"{before.epoch}: ask the operator for the new registry.json"
        )
    if asked and before and asked.epoch == before.epoch and before.group_keys not in ("", asked.group_keys):
        raise ConfigError(
            f"the registry of this aggregator has other keys of the helpers for epoch {asked.epoch} than the "
            "federation: ask the operator for its registry.json. Where the operator has begun anew, "
            "`fluffle federation reset` begins another federation"
        )


class SecureState:
    """The buffer of masked updates, the sum that waits to be opened, and the sum before it.

    `registered` are the workers that may take part. `given_up` are the updates of sums that were given up in
    this epoch. `unmasked_runs` is the number of runs of before secure aggregation; see `remembered`.
    """

    def __init__(
        self,
        plan: SecurePlan,
        record: ModelVersion,
        *,
        buffer_size: int,
        fewest_workers: int,
        registered: frozenset[str],
        survey_size: int = 0,
    ) -> None:
        """Go on from the sum that a record names, or begin in a new epoch.

        So many answers close the survey; 0 if none is open.
        """
        self.plan = plan
        self.registered = registered
        self.closed: CloseRecord | None = None
        self._why: dict[UpdateId, tuple[str, str]] = {}
        self._buffer_size = buffer_size
        self._survey_size = survey_size
        self._fewest_workers = fewest_workers
        self.buffer = self._empty()
        last = record.last_sum
        is_of_epoch = last is not None and last.epoch == plan.epoch
        begun = LastSum(epoch=plan.epoch, number=0, digest="")
        self.last_sum = last if last and is_of_epoch else begun
        self.given_up = record.given_up if is_of_epoch else AppliedUpdates()
        self.unmasked_runs = record.unmasked_runs if record.plan.secure else len(record.applied.runs)
        self._is_new_epoch = not is_of_epoch

    def _empty(self) -> MaskedBuffer:
        if self._survey_size:
            return MaskedBuffer(survey_plan(self.plan), self._survey_size, self._fewest_workers)
        return MaskedBuffer(self.plan, self._buffer_size, self._fewest_workers)

    @staticmethod
    def asks_again(record: ModelVersion) -> bool:
        """Return whether everybody is to answer an open survey again.

        Of answers in the clear no masked sum is made. And where messages were refused, answers may be among
        them that would fit by now: those before them have perhaps been of a worker that is revoked since.
        """
        return bool(record.rejected or (record.survey and record.survey.answered))

    @property
    def share_of_one(self) -> int:
        """How many updates one worker may have in a buffer."""
        return MaskedBuffer(self.plan, self._buffer_size, self._fewest_workers).share_of_one

    @property
    def is_idle(self) -> bool:
        """Whether no sum is awaited, and none could be made of what is in the buffer."""
        return self.closed is None and (not len(self.buffer) or bool(self.buffer.why_not()))

    def end_survey(self) -> None:
        """Collect updates from now on."""
        self._survey_size = 0
        self.buffer = self._empty()

    def factor(self, weight: float) -> int:
        """Return the integer weight of an update that counts so much, where a fresh one counts 1."""
        return max(1, round(weight * self.buffer.plan.greatest))

    def with_waiting(self, applied: AppliedUpdates) -> AppliedUpdates:
        """Return these updates with those that wait in the buffer."""
        return applied.adding(each.id for each in self.buffer.updates)

    def remembered(self, applied: AppliedUpdates) -> AppliedUpdates:
        """Return what is remembered of these updates with the next sum.

        The first sum of an epoch forgets the runs that were masked for older ones: their updates are refused
        whenever they come, and by then those have come that a leader had not acked when it died. Each
        worker's newest run stays, since it may go on.
        """
        if not self._is_new_epoch:
            return applied
        runs = list(applied.runs.items())
        newest = {worker: run for (worker, run), _ in runs}
        masked = [(key, log) for key, log in runs[self.unmasked_runs :] if newest[key[0]] == key[1]]
        return AppliedUpdates(dict([*runs[: self.unmasked_runs], *masked]))

    def note_sum(self) -> None:
        """Forget nothing more in this epoch: a version is made of its first sum."""
        self._is_new_epoch = False

    def has_to_wait(self, update: WeightUpdate, weight: float) -> bool:
        """Return whether an update cannot come into the buffer now."""
        return self.closed is not None or not self.buffer.has_room_for(update.id.worker, self.factor(weight))

    def has_closed(self, update: UpdateId) -> bool:
        """Return whether an update is in the sum that waits to be opened."""
        return self.closed is not None and update in self.closed

    def awaits(self, close: CloseRecord) -> None:
        """Take note that the next version is made of the sum of this close record."""
        self.buffer, self.closed = self._empty(), close

    def drop(self) -> None:
        """Empty the buffer, whose updates will come again, and await no sum."""
        self.buffer, self.closed = self._empty(), None

    def give_up(self, close: CloseRecord, reason: str, detail: str) -> None:
        """Refuse the updates of a sum when they come again, however late."""
        ids = [each.id for each in close.updates]
        self.given_up = self.given_up.adding(ids)
        self._why = dict.fromkeys(ids, (reason, detail))

    def why_given_up(self, update: UpdateId) -> tuple[str, str] | None:
        """Return reason and detail for which an update is refused, None unless its sum was given up."""
        if update not in self.given_up:
            return None
        detail = "its sum was given up, and helpers open no update of it again: its worker trains anew"
        return self._why.get(update, (NOT_OPENED, detail))
