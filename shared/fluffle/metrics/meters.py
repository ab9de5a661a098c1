"""What each part counts, named and measured as Prometheus has it; docs/monitoring.md lists it.

A meter is a EventSink: it counts the events of its own process. Labels are bounded: a part's own name is the
same on all that it serves, and a leader makes no label of a name that others chose.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from fluffle.broker import Broker
from fluffle.events import (
    Applied,
    Committed,
    Evaluated,
    Event,
    Measured,
    Progressed,
    Published,
    Rejected,
    Role,
    Started,
    TookOver,
    Trained,
)
from fluffle.fields import MAX_METRICS

# What further values of a label are counted under.
OTHER: Final = "other"
MAX_REASONS: Final = 64

STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROUND_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class _Meter(ABC):
    """What every part counts: its connections, and what its process takes."""

    def __init__(self, federation: str, role: Role, name: str) -> None:
        self.registry = CollectorRegistry()
        self._labels, self._values = ("federation", role), (federation, name)
        ProcessCollector(registry=self.registry)
        self._connected = self._gauge("fluffle_connected", "1 while connected to RabbitMQ, else 0.")
        self._connections = self._counter("fluffle_connections", "Connections made to RabbitMQ.")

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """See EventSink."""

    @contextmanager
    def over(self, broker: Broker) -> Iterator[Broker]:
        """See EventSink."""
        self._connections.inc()
        self._connected.set(1)
        try:
            yield broker
        finally:
            self._connected.set(0)

    def show_spool(self, waiting: Callable[[], int]) -> None:
        """Show how many updates are in a spool, which is asked at each scrape."""
        about = "Updates that wait on its disk for RabbitMQ."
        self._gauge("fluffle_worker_spool_updates", about).set_function(waiting)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, self._labels, registry=self.registry).labels(*self._values)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, self._labels, registry=self.registry).labels(*self._values)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, about, self._labels, buckets=buckets, registry=self.registry)
        return made.labels(*self._values)


class AggregatorMeter(_Meter):
    """Counts what an aggregator commits and refuses while it leads.

    An update counts, and an evaluation is shown, when the version whose record has it is committed: what was
    only taken in when the connection went comes again.
    """

    def __init__(self, federation: str, name: str) -> None:
        super().__init__(federation, "aggregator", name)
        self._folded: list[Applied] = []
        self._evaluated: Evaluated | None = None
        self._leading = self._gauge("fluffle_leading", "1 while this aggregator leads, 0 as a standby.")
        self._commits = self._counter("fluffle_commits", "Versions committed.")
        self._updates = self._counter("fluffle_updates_applied", "Updates in the versions committed.")
        self._examples = self._counter("fluffle_examples_applied", "Training examples that they claim.")
        self._bytes = self._counter("fluffle_update_bytes", "Size of the applied updates as they came.")
        self._plain_bytes = self._counter(
            "fluffle_update_float32_bytes", "Size of their vectors without a codec."
        )
        self._staleness = self._histogram(
            "fluffle_update_staleness_versions", "Versions by which they were late.", STALENESS_BUCKETS
        )
        self._commit_s = self._histogram(
            "fluffle_commit_seconds", "Time to publish a version until confirmed.", COMMIT_BUCKETS_S
        )
        self._rejected = Counter(
            "fluffle_rejected", "Messages refused.", (*self._labels, "reason"), registry=self.registry
        )
        self._reason = _Bounded(MAX_REASONS)
        self._metric = _Bounded(MAX_METRICS)
        self._of_the_leader = {
            name: Gauge(name, about, self._labels, registry=self.registry)
            for name, about in {
                "fluffle_version": "Newest version of the model.",
                "fluffle_term": "Term under which this aggregator leads.",
                "fluffle_best_version": "Version that was evaluated best.",
                "fluffle_target_held": "Evaluations in a row that reached the target.",
                "fluffle_evaluated_version": "Version that was evaluated last.",
                "fluffle_last_commit_timestamp_seconds": "Unix time of the last commit.",
            }.items()
        }
        # What of those is shown now.
        self._shown: dict[str, Gauge] = {}
        self._evaluation = Gauge(
            "fluffle_evaluation",
            "What the evaluator measured last.",
            (*self._labels, "metric"),
            registry=self.registry,
        )

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        match event:
            case Applied():
                self._folded.append(event)
            case Committed():
                self._count_commit(event)
            case Rejected():
                self._rejected.labels(*self._values, self._reason(event.reason)).inc()
            case Evaluated():
                self._evaluated = event
            case TookOver():
                self._leading.set(1)
                self._set("fluffle_term", event.term)
                self._set("fluffle_version", event.version)

    @contextmanager
    def over(self, broker: Broker) -> Iterator[Broker]:
        """See EventSink; who has lost the connection leads no more."""
        with super().over(broker):
            try:
                yield broker
            finally:
                self._folded.clear()
                self._evaluated = None
                self._leading.set(0)
                self._shown.clear()
                for gauge in (*self._of_the_leader.values(), self._evaluation):
                    gauge.clear()

    def _count_commit(self, commit: Committed) -> None:
        self._commits.inc()
        self._commit_s.observe(commit.seconds)
        # Sums, since each call costs half a microsecond.
        folded, self._folded = self._folded, []
        self._updates.inc(len(folded))
        self._examples.inc(sum(each.examples for each in folded))
        self._bytes.inc(sum(each.size_bytes for each in folded))
        self._plain_bytes.inc(sum(each.plain_bytes for each in folded))
        for each in folded:
            self._staleness.observe(each.staleness)
        self._set("fluffle_version", commit.version)
        self._set("fluffle_term", commit.term)
        self._set("fluffle_target_held", commit.target_held)
        self._set("fluffle_last_commit_timestamp_seconds", time.time())
        if commit.best_version >= 0:
            self._set("fluffle_best_version", commit.best_version)
        if self._evaluated:
            self._set("fluffle_evaluated_version", self._evaluated.version)
            for metric, value in self._evaluated.metrics.items():
                self._evaluation.labels(*self._values, self._metric(metric)).set(value)

    def _set(self, name: str, value: float) -> None:
        if name not in self._shown:
            self._shown[name] = self._of_the_leader[name].labels(*self._values)
        self._shown[name].set(value)


class WorkerMeter(_Meter):
    """Counts a worker's rounds, and what it has published."""

    def __init__(self, federation: str, name: str) -> None:
        super().__init__(federation, "worker", name)
        self._train_s = self._histogram(
            "fluffle_worker_train_seconds", "Time that a round of training took.", ROUND_BUCKETS_S
        )
        self._published = self._counter(
            "fluffle_worker_updates_published", "Updates that RabbitMQ has confirmed."
        )
        self._bytes = self._counter("fluffle_worker_published_bytes", "Size of those updates.")
        self._version = self._gauge("fluffle_worker_base_version", "Version that it trains from.")
        self._progress = self._gauge("fluffle_worker_round_done_ratio", "Share of the round that is done.")

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        match event:
            case Started():
                self._version.set(event.version)
                self._progress.set(0)
            case Progressed():
                self._progress.set(event.done / max(1, event.total))
            case Trained():
                self._train_s.observe(event.seconds)
                self._progress.set(1)
            case Published():
                self._published.inc()
                self._bytes.inc(event.size_bytes)


class EvaluatorMeter(_Meter):
    """Counts what an evaluator has measured; the values themselves are the leader's to tell."""

    def __init__(self, federation: str, name: str) -> None:
        super().__init__(federation, "evaluator", name)
        self._seconds = self._histogram(
            "fluffle_evaluator_evaluation_seconds", "Time that it took to measure a version.", ROUND_BUCKETS_S
        )
        self._version = self._gauge("fluffle_evaluator_version", "Version that it measured last.")

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        match event:
            case Measured():
                self._seconds.observe(event.seconds)
                self._version.set(event.version)


class _Bounded:
    """Lets so many values of a label through, and calls all further ones `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if len(self._known) < self._most:
            self._known.add(value)
        return value if value in self._known else OTHER


METERS: Final[Mapping[Role, Callable[[str, str], _Meter]]] = {
    "aggregator": AggregatorMeter,
    "worker": WorkerMeter,
    "evaluator": EvaluatorMeter,
}
