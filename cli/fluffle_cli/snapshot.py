"""What can be known of a federation from outside at one moment, from its stream and its queues."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fluffle.broker import Broker
from fluffle.connection import require_federation
from fluffle.models import version_at_hand
from fluffle.plan import Plan
from fluffle.policy_faults import PolicyFault
from fluffle.record import Contributor, Evaluation, ModelVersion
from fluffle.topology import Topology

RATE_OVER_S = 4.0
LOOK_AT_QUEUES_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStates:
    """What waits on the broker: updates that no aggregator holds yet, and refused messages."""

    updates_waiting: int
    aggregator_active: bool
    rejected_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker's part in the newest version.

    `weight_share` is its part of the weight that all applied updates were given, from 0 to 1.
    """

    updates: int
    examples: int
    mean_staleness: float
    weight_share: float
    rejected: int
    seconds_since_update: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A federation at one moment: its newest version without the vector, its workers and its queues.

    Before the first version `version` is None and the rest is empty. `updates_per_s` is the rate since an
    earlier snapshot where there is one, else since version 0; None when it cannot be told. `taken_at` is
    Unix time in seconds.
    """

    federation: str
    taken_at: float
    queues: QueueStates
    version: int | None = None
    term: int | None = None
    finished: str = ""
    strategy: str = ""
    plan: Plan | None = None
    parameters: int = 0
    updates: int = 0
    updates_per_s: float | None = None
    rejected: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    target_held: int = 0
    elapsed_s: float = 0.0
    workers: Mapping[str, WorkerFacts]
    policy_faults: tuple[PolicyFault, ...] | None = None

    def as_json(self) -> dict[str, object]:
        """Return plain types under keys that stay: the fields' names, with null for what is not known.

        `policy_faults` are PolicyFault's fields, null when RabbitMQ's policies could not be looked at.
        `plan` is an object of the plan's fields, `evaluation` and `best` have `evaluator`, `version`,
        `metrics` and `evaluate_s`, `workers` maps names to objects of WorkerFacts' fields, and `queues` has
        QueueStates' fields.
        """
        return {
            "federation": self.federation,
            "taken_at": round(self.taken_at, 3),
            "version": self.version,
            "term": self.term,
            "finished": self.finished,
            "strategy": self.strategy,
            "plan": self.plan and asdict(self.plan),
            "parameters": self.parameters,
            "updates": self.updates,
            "updates_per_s": self.updates_per_s,
            "rejected": self.rejected,
            "evaluation": _evaluation_as_json(self.evaluation),
            "best": _evaluation_as_json(self.best),
            "target_held": self.target_held,
            "elapsed_s": self.elapsed_s,
            "workers": {name: asdict(facts) for name, facts in self.workers.items()},
            "queues": asdict(self.queues),
            "policy_faults": None
            if self.policy_faults is None
            else [fault.as_json() for fault in self.policy_faults],
        }


class Lookout:
    """Looks at a federation again and again: each snapshot has the rate of updates over the last seconds."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._queues = QueueStates(updates_waiting=0, aggregator_active=False, rejected_waiting=0)
        self._looked_at = 0.0
        self._recent: deque[Snapshot] = deque()

    def look(self, broker: Broker, newest: ModelVersion | None) -> Snapshot:
        """Look at the queues, if it is time to, and set the newest version beside them.

        Raises TopologyMissing when the federation is not on this broker.
        """
        now = time.time()
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
        return snapshot_of(newest, self._queues, federation=self._topology.federation, now=now, before=before)


def take_snapshot(broker: Broker, topology: Topology) -> Snapshot:
    """Look at a federation now. The newest model is read whole.

    Raises TopologyMissing when the federation is not on this broker.
    """
    queues = queue_states(broker, topology)
    newest = version_at_hand(broker, topology)
    return snapshot_of(newest, queues, federation=topology.federation, now=time.time())


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
) -> Snapshot:
    """Make a snapshot of what was read; `version` is None before the first, `now` is Unix time in seconds."""
    if version is None:
        return Snapshot(federation=federation, taken_at=now, queues=queues, workers={})
    total_weight = sum(contributor.weight_sum for contributor in version.contributors.values())
    return Snapshot(
        federation=federation,
        taken_at=now,
        queues=queues,
        version=version.version,
        term=version.term,
        finished=version.finished,
        strategy=version.strategy,
        plan=version.plan,
        parameters=version.layout.size,
        updates=version.updates,
        updates_per_s=_updates_per_s(version, now, before),
        rejected=version.rejected,
        evaluation=version.evaluation,
        best=version.best,
        target_held=version.target_held,
        elapsed_s=version.elapsed_s,
        workers={
            name: _worker_facts(contributor, total_weight=total_weight, now=now)
            for name, contributor in sorted(version.contributors.items())
        },
    )


def _worker_facts(contributor: Contributor, *, total_weight: float, now: float) -> WorkerFacts:
    return WorkerFacts(
        updates=contributor.updates,
        examples=contributor.examples,
        mean_staleness=contributor.mean_staleness,
        weight_share=contributor.weight_sum / total_weight if total_weight else 0.0,
        rejected=contributor.rejected,
        # Two machines' clocks need not agree.
        seconds_since_update=max(0.0, now - contributor.last_update_at) if contributor.updates else None,
    )


def _updates_per_s(version: ModelVersion, now: float, before: Snapshot | None) -> float | None:
    if before is not None and before.version is not None and now > before.taken_at:
        return max(0, version.updates - before.updates) / (now - before.taken_at)
    return version.updates / version.elapsed_s if version.elapsed_s else None


def _evaluation_as_json(evaluation: Evaluation | None) -> dict[str, object] | None:
    if evaluation is None:
        return None
    return {
        "evaluator": evaluation.evaluator,
        "version": evaluation.version,
        "metrics": dict(evaluation.metrics),
        "evaluate_s": evaluation.evaluate_s,
    }
