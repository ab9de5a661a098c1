"""A leader that only counts: when versions are made, whose updates they hold, how stale these are.

It decides as `fluffle_aggregator.leader` does, with the strategy's own weights, schedule and limits, but it
holds no vector, writes no message and keeps no record. So it takes in updates many times as fast, and the
number of workers is not bounded by what fits into a record. tests/unit/test_queueing.py compares the
decisions of both.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from fluffle.plan import Plan
from fluffle_aggregator.gates.fitting import DUPLICATE, FINISHED
from fluffle_aggregator.gates.history import SECOND_IN_ROUND, TOO_STALE
from fluffle_aggregator.leader import REFUSALS_TOLD_AFTER_S
from fluffle_aggregator.strategies.strategy import UpdateFacts
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.base_version import (
    FIRST_PATIENCE_S,
    LONGEST_PATIENCE_S,
    ROUNDS_OF_PATIENCE,
    TIMES_OWN_PART,
)
from fluffle_worker.pace.speed import UNKNOWN, Speed
from fluffle_worker.pace.steps import with_chosen_steps


@dataclass(slots=True, eq=False)
class CountedWorker:
    """A worker, and what the leader knows of it.

    `base` is the number of the version that its round started from. Updates are numbered from 1. Up to
    `settled`, those that it sent are in the version that it read last, or passed over there; `folded` is the
    highest number that the leader has folded, and `committed` the highest in the newest version, which holds
    `given` of its updates. `updates`, `staleness` and `weight` are sums over its folded updates.
    """

    index: int
    plan: Plan
    base: int = 0
    is_new: bool = True
    begun: int = 0
    is_training: bool = False
    sent: int = 0
    waits: int = 0
    round_s: float = 0.0
    patience_s: float = FIRST_PATIENCE_S
    speed: Speed = UNKNOWN
    settled: int = 0
    folded: int = 0
    folded_in: int = -1
    committed: int = 0
    given: int = 0
    updates: int = 0
    staleness: int = 0
    weight: float = 0.0
    rejected: int = 0

    @property
    def round_plan(self) -> Plan:
        """The plan with what the worker chooses itself."""
        return with_chosen_steps(self.plan, self.speed)

    @property
    def base_version(self) -> int:
        """The number of the version that its round starts from."""
        return self.base

    def trains(self, number: int) -> bool:
        """Return whether its round of this number goes on."""
        return self.is_training and self.begun == number

    def read(self, newest: int) -> None:
        """Take a version as the base of the next round."""
        if newest > self.base:
            self.patience_s = FIRST_PATIENCE_S
        self.settled = max(self.settled, self.committed)
        self.base, self.is_new = newest, False

    def send(self) -> None:
        """Give the update of the round that ends its number."""
        self.sent += 1
        self.patience_s = max(self.patience_s, ROUNDS_OF_PATIENCE * self.round_s)

    def crash(self) -> None:
        """Forget what a process keeps in memory; what was sent stays sent."""
        self.is_training = False
        self.is_new, self.settled, self.patience_s = True, self.sent, FIRST_PATIENCE_S
        self.speed = UNKNOWN

    def lose_patience(self) -> None:
        """Double how long it waits the next time, up to ten minutes."""
        self.patience_s = min(LONGEST_PATIENCE_S, 2 * self.patience_s)


class CountedUpdate(NamedTuple):
    """One update that a version contains; see fluffle.record.Folded."""

    worker: CountedWorker
    sequence: int
    base_version: int
    staleness: int
    weight: float


class CountingLeader:
    """Takes in updates, and counts; `on_commit` gets the updates of each version.

    `version` is the number of the newest version that workers can read. `refused` counts refused updates by
    reason, and `staleness` folded ones by their staleness.
    """

    def __init__(
        self, settings: SimulateSettings, on_commit: Callable[[float, Sequence[CountedUpdate]], None]
    ) -> None:
        """Lead from version 0."""
        self.version = 0
        self.finished = ""
        self.refused: Counter[str] = Counter()
        self.staleness: Counter[int] = Counter()
        self.updates = 0
        strategy = settings.make_strategy()
        self.plan = settings.make_plan(strategy)
        self._strategy, self._on_commit = strategy, on_commit
        self._goal, self._schedule = settings.make_goal(), settings.make_commit_schedule(strategy)
        self._most_updates = _or_inf(self._goal.max_updates)
        self._most_versions, self._most_s = _or_inf(self._goal.max_versions), _or_inf(self._goal.max_seconds)
        self._is_synchronous = strategy.one_update_per_version
        self._most_stale = self.plan.max_staleness
        self._weigh = cache(lambda staleness: strategy.weigh(UpdateFacts(staleness, 1, 1, 1.0)).factor)
        # The version that the next update would be compared with; it may not be published yet.
        self._made = 0
        self._in_buffer = 0
        self._held: list[CountedUpdate] = []
        self._contributing = 0
        self._committed_updates = 0
        self._started_s: float | None = None
        self._has_untold = False
        self._held_from = self._refused_from = self._committed_at = 0.0
        self._told_after_s = (
            self._schedule.buffer_timeout_s if self._is_synchronous else REFUSALS_TOLD_AFTER_S
        )

    def begin(self) -> None:
        """Do nothing: the real leader only writes to its log."""

    def take_in(self, worker: CountedWorker, sequence: int, at_s: float) -> None:
        """Fold an update, or refuse it, in the order of the gates."""
        staleness = self._made - worker.base
        if self.finished:
            self.refused[FINISHED] += 1
        elif sequence <= worker.folded:
            self._refuse(worker, DUPLICATE, at_s)
        elif self._is_synchronous and worker.folded_in == self._made:
            self._refuse(worker, SECOND_IN_ROUND, at_s)
        elif self._most_stale is not None and staleness > self._most_stale:
            self._refuse(worker, TOO_STALE, at_s)
        else:
            self._fold(
                worker, CountedUpdate(worker, sequence, worker.base, staleness, self._weigh(staleness)), at_s
            )

    def _refuse(self, worker: CountedWorker, reason: str, at_s: float) -> None:
        self.refused[reason] += 1
        if not self._has_untold:
            self._refused_from = at_s
        worker.rejected += 1
        self._has_untold |= worker.rejected.bit_count() == 1

    def _fold(self, worker: CountedWorker, update: CountedUpdate, at_s: float) -> None:
        if not self._held:
            self._held_from = at_s
            if self._started_s is None:
                self._started_s = at_s
        self._held.append(update)
        self.staleness[update.staleness] += 1
        self.updates += 1
        worker.folded, worker.folded_in = update.sequence, self._made
        worker.updates += 1
        worker.staleness += update.staleness
        worker.weight += update.weight
        self._in_buffer += 1
        if self._in_buffer >= self._strategy.buffer_size:
            self._step()

    def _step(self) -> None:
        if self._in_buffer:
            self._in_buffer = 0
            self._made += 1

    def tick(self, at_s: float) -> None:
        """Commit or finish if it is time to."""
        if self.finished:
            return
        made, schedule = self._made, self._schedule
        training_s = 0.0 if self._started_s is None else at_s - self._started_s
        if self.updates >= self._most_updates or made >= self._most_versions or training_s >= self._most_s:
            # Nobody evaluates: the last version is not waited for.
            self.finished = self._goal.reached(
                version=made, updates=self.updates, training_s=training_s, target_held=0
            )
            self._commit_newer(at_s)
        elif self._held and at_s - self._held_from >= schedule.buffer_timeout_s:
            self._step()
            self._commit(at_s)
        elif (
            made > self.version
            and not self._in_buffer
            and schedule.is_due(made - self.version, since_commit_s=at_s - self._committed_at)
        ):
            self._commit(at_s)
        elif self._has_untold and not self._held and at_s - self._refused_from >= self._told_after_s:
            self._commit_newer(at_s)

    def _commit_newer(self, at_s: float) -> None:
        self._step()
        if self._made == self.version:
            self._made += 1
        self._commit(at_s)

    def _commit(self, at_s: float) -> None:
        """Publish what is made, and count whose updates it contains."""
        self.version, held = self._made, self._held
        self._held, self._has_untold, self._committed_at = [], False, at_s
        for update in held:
            worker = update.worker
            self._contributing += not worker.given
            worker.given += 1
            worker.committed = update.sequence
        self._committed_updates += len(held)
        self._on_commit(at_s, held)

    def next_tick(self, at_s: float) -> float | None:
        """Return when a tick is due though no message comes; None when the leader waits for messages only."""
        del at_s
        if self.finished:
            return None
        due_s = math.inf if self._started_s is None else self._started_s + self._most_s
        if self._held:
            due_s = min(due_s, self._held_from + self._schedule.buffer_timeout_s)
        elif self._has_untold:
            due_s = min(due_s, self._refused_from + self._told_after_s)
        # Nothing is committed while the buffer holds a part of the next version.
        if self._made > self.version and not self._in_buffer and self._schedule.after_s is not None:
            due_s = min(due_s, self._committed_at + self._schedule.after_s)
        return due_s if due_s < math.inf else None

    def must_wait(self, worker: CountedWorker) -> bool:
        """Return whether a worker waits for a version newer than the newest one."""
        if worker.is_new or self.version > worker.base:
            return False
        if self._is_synchronous:
            return True
        in_flight = worker.sent - worker.settled
        # Nobody may have fewer than two under way.
        return in_flight >= 2 and in_flight >= self._most_in_flight(worker)

    def _most_in_flight(self, worker: CountedWorker) -> int:
        """See fluffle_worker.base_version.most_in_flight."""
        per_version = self.plan.updates_per_version
        if self._contributing < 2:
            return per_version + 1
        share = max(worker.given / self._committed_updates, 1 / self._contributing)
        return min(per_version, math.ceil(TIMES_OWN_PART * share * per_version)) + 1


def _or_inf(limit: float | None) -> float:
    return math.inf if limit is None else limit
