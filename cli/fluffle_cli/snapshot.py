"""What can be known of a federation from outside at one moment, from its stream and its queues."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fluffle.broker import Broker
from fluffle.connection import require_federation
from fluffle.model_stream import all_records, stored_record_at_hand
from fluffle.plan import Plan
from fluffle.policy_faults import PolicyFault
from fluffle.record import Evaluation, ModelVersion
from fluffle.topology import MIB, Topology
from fluffle_cli.findings import Finding, findings_of
from fluffle_cli.history import EvaluatedVersion, History, losses_of
from fluffle_cli.standing import Progress, Standing, progress_of
from fluffle_cli.workers import WorkerFacts, facts_of

RATE_OVER_S = 4.0
LOOK_AT_QUEUES_EVERY_S = 1.0
# The past is read if it is no more than this: in a second or two, over a slow link too.
PAST_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStates:
    """What waits on the broker: updates that no aggregator holds yet, and refused messages."""

    updates_waiting: int
    aggregator_active: bool
    rejected_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A federation at one moment: its newest version without the vector, its workers and its queues.

    Before the first version `version` is None and the rest is empty. `updates_per_s` is the rate since an
    earlier snapshot where there is one, else since version 0; None when it cannot be told. `taken_at` is
    Unix time in seconds. `best` is the best evaluation by `best_by`, such as "accuracy:max"; there is none
    where nothing says whether more or less is better. `history` is what was seen until now, and `silent_s`
    and `rivals` are those of Standing.
    """

    federation: str
    taken_at: float
    queues: QueueStates
    version: int | None = None
    term: int | None = None
    closing: str = ""
    finished: str = ""
    strategy: str = ""
    plan: Plan | None = None
    parameters: int = 0
    updates: int = 0
    updates_per_s: float | None = None
    rejected: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_by: str = ""
    target_held: int = 0
    elapsed_s: float = 0.0
    training_s: float = 0.0
    workers: Mapping[str, WorkerFacts]
    silent_s: Mapping[str, float] = field(default_factory=dict)
    rivals: Mapping[str, str] = field(default_factory=dict)
    history: History = field(default_factory=History)
    policy_faults: tuple[PolicyFault, ...] | None = None

    def as_json(self) -> dict[str, object]:
        """Return plain types under keys that stay: the fields' names, with null for what is not known.

        `policy_faults` are PolicyFault's fields, null when RabbitMQ's policies could not be looked at.
        `plan` is an object of the plan's fields, `evaluation` and `best` have `evaluator`, `version`,
        `metrics` and `evaluate_s`, `workers` maps names to objects of WorkerFacts' fields and `losses`, the
        training losses that were seen, and `queues` has QueueStates' fields. `progress` has `state` and
        `says`, `findings` is a list of `kind`, `says` and `do`.
        """
        return self.as_json_without_workers() | {
            "workers": {
                name: asdict(facts) | {"losses": list(losses_of(self.history, name))}
                for name, facts in self.workers.items()
            }
        }

    def as_json_without_workers(self) -> dict[str, object]:
        """Return the same without `workers`, of which there may be thousands."""
        return {
            "federation": self.federation,
            "taken_at": round(self.taken_at, 3),
            "version": self.version,
            "term": self.term,
            "closing": self.closing,
            "finished": self.finished,
            "strategy": self.strategy,
            "plan": self.plan and asdict(self.plan),
            "parameters": self.parameters,
            "updates": self.updates,
            "updates_per_s": self.updates_per_s,
            "rejected": self.rejected,
            "evaluation": _evaluation_as_json(self.evaluation),
            "best": _evaluation_as_json(self.best),
            "best_by": self.best_by,
            "progress": asdict(self.progress),
            "findings": [asdict(found) for found in self.findings],
            "target_held": self.target_held,
            "elapsed_s": self.elapsed_s,
            "training_s": self.training_s,
            "queues": asdict(self.queues),
            "policy_faults": None
            if self.policy_faults is None
            else [fault.as_json() for fault in self.policy_faults],
        }

    @property
    def standing(self) -> Standing:
        """What this federation is judged by."""
        return Standing(
            is_over=bool(self.closing or self.finished),
            version=-1 if self.version is None else self.version,
            updates=self.updates,
            workers=self.workers,
            evaluation=_with_seconds(self.evaluation, self.history),
            best=_with_seconds(self.best, self.history),
            best_by=self.best_by,
            history=self.history,
            training_s=self.training_s,
            silent_s=self.silent_s,
            rivals=self.rivals,
            takes_rounds=self.plan is not None and self.plan.one_update_per_version,
            is_led=self.queues.aggregator_active,
            updates_waiting=self.queues.updates_waiting,
        )

    @property
    def progress(self) -> Progress:
        """Whether the model still improves."""
        return progress_of(self.standing)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, the most urgent first."""
        return findings_of(self.standing)


class SnapshotReader:
    """Looks at a federation again and again: each snapshot has the rate of updates over the last seconds."""

    def __init__(self, topology: Topology) -> None:
        self.history = History()
        self._topology = topology
        self._queues = QueueStates(updates_waiting=0, aggregator_active=False, rejected_waiting=0)
        self._looked_at = 0.0
        self._recent: deque[Snapshot] = deque()

    def look(self, broker: Broker, newest: ModelVersion | None) -> Snapshot:
        """Look at the queues, if it is time to, and set the newest version beside them.

        Raises TopologyMissing when the federation is not on this broker.
        """
        now = time.time()
        if newest is not None:
            self.history.read(newest)
        if now > self._looked_at + LOOK_AT_QUEUES_EVERY_S:
            self._queues = queue_states(broker, self._topology)
            self._looked_at = now
        while len(self._recent) > 1 and self._recent[1].taken_at < now - RATE_OVER_S:
            self._recent.popleft()
        # At the end the rate is that of the whole, in between that of the last seconds.
        is_over = newest is not None and newest.finished
        before = self._recent[0] if self._recent and not is_over else None
        snapshot = self._snapshot(newest, now, before)
        self._recent.append(snapshot)
        return snapshot

    def nothing_yet(self) -> Snapshot:
        """Return what is known before there is a broker to look at."""
        return self._snapshot(None, time.time(), None)

    def _snapshot(self, newest: ModelVersion | None, now: float, before: Snapshot | None) -> Snapshot:
        return snapshot_of(
            newest,
            self._queues,
            federation=self._topology.federation,
            now=now,
            before=before,
            history=self.history,
        )


def take_snapshot(broker: Broker, topology: Topology) -> Snapshot:
    """Look at a federation now. The past is read if it is small.

    Raises TopologyMissing when the federation is not on this broker.
    """
    queues = queue_states(broker, topology)
    history = History()
    newest = read_the_past(broker, topology, history)
    return snapshot_of(newest, queues, federation=topology.federation, now=time.time(), history=history)


def read_the_past(broker: Broker, topology: Topology, history: History) -> ModelVersion | None:
    """Read all versions that the stream has into a history, if they are small, and return the newest one."""
    stored = stored_record_at_hand(broker, topology)
    if stored is None:
        return None
    newest = stored.version
    if len(stored.body) * (newest.version + 1) <= PAST_BYTES:
        for version in all_records(broker, topology):
            history.read(version)
    history.read(newest)
    return newest


def queue_states(broker: Broker, topology: Topology) -> QueueStates:
    """Look at a federation's queues; raises TopologyMissing when they are not on this broker."""
    require_federation(broker, topology)
    updates = broker.state(topology.updates.name)
    rejected = broker.state(topology.rejected.name)
    return QueueStates(
        updates_waiting=updates.messages,
        aggregator_active=updates.consumers > 0,
        rejected_waiting=rejected.messages,
    )


def snapshot_of(
    version: ModelVersion | None,
    queues: QueueStates,
    *,
    federation: str,
    now: float,
    before: Snapshot | None = None,
    history: History | None = None,
) -> Snapshot:
    """Make a snapshot of what was read; `version` is None before the first, `now` is Unix time in seconds.

    Without a `history` it knows nothing of the past but what the record says.
    """
    if version is None:
        return Snapshot(federation=federation, taken_at=now, queues=queues, workers={})
    if history is None:
        history = History()
        history.read(version)
    workers = facts_of(version.contributors, now=now)
    last_heard = {name: each.seconds_since_update for name, each in workers.items()}
    return Snapshot(
        federation=federation,
        taken_at=now,
        queues=queues,
        version=version.version,
        term=version.term,
        closing=version.closing,
        finished=version.finished,
        strategy=version.strategy,
        plan=version.plan,
        parameters=version.layout.size,
        updates=version.updates,
        updates_per_s=_updates_per_s(version, now, before),
        rejected=version.rejected,
        evaluation=version.evaluation,
        best=version.best,
        best_by=version.best_by,
        target_held=version.target_held,
        elapsed_s=version.elapsed_s,
        training_s=version.training_s,
        workers=workers,
        silent_s={name: seconds for name, seconds in last_heard.items() if seconds is not None},
        history=history,
    )


def _updates_per_s(version: ModelVersion, now: float, before: Snapshot | None) -> float | None:
    if before is not None and before.version is not None and now > before.taken_at:
        return max(0, version.updates - before.updates) / (now - before.taken_at)
    return version.updates / version.elapsed_s if version.elapsed_s else None


def _with_seconds(evaluation: Evaluation | None, history: History) -> EvaluatedVersion | None:
    if evaluation is None:
        return None
    seconds = history.seconds_of(evaluation.version) or 0.0
    return EvaluatedVersion(evaluation.version, seconds, evaluation.metrics)


def _evaluation_as_json(evaluation: Evaluation | None) -> dict[str, object] | None:
    if evaluation is None:
        return None
    return {
        "evaluator": evaluation.evaluator,
        "version": evaluation.version,
        "metrics": dict(evaluation.metrics),
        "evaluate_s": evaluation.evaluate_s,
    }
