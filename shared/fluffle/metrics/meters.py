"""What each part counts, named and measured as Prometheus has it; docs/how-to/prometheus.md lists it.

A meter is an EventSink: it counts the events of its own process. Labels are bounded: a part's own name is the
same on all that it serves, and a leader makes no label of a name that others chose.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from fluffle import events
from fluffle.broker import Broker
from fluffle.fields import MAX_METRICS

# What further values of a label are counted under.
OTHER: Final = "other"
MAX_REASONS: Final = 64
STALENESS_BUCKETS: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128)
COMMIT_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROUND_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
Texts = Mapping[str, str]

COUNTERS: Final[Mapping[events.Role, Texts]] = {
    "aggregator": {
        "fluffle_commits": "Versions committed.",
        "fluffle_updates_applied": "Updates in the versions committed.",
        "fluffle_examples_applied": "Training examples that they claim.",
        "fluffle_update_bytes": "Size of the applied updates as they came.",
        "fluffle_update_float32_bytes": "Size of their vectors without a codec.",
    },
    "worker": {
        "fluffle_worker_updates_published": "Updates that RabbitMQ has confirmed.",
        "fluffle_worker_published_bytes": "Size of those updates.",
    },
    "evaluator": {},
}
GAUGES: Final[Mapping[events.Role, Texts]] = {
    "aggregator": {"fluffle_leading": "1 while this aggregator leads, 0 as a standby."},
    "worker": {
        "fluffle_worker_base_version": "Version that it trains from.",
        "fluffle_worker_round_done_ratio": "Share of the round that is done.",
    },
    "evaluator": {"fluffle_evaluator_version": "Version that it measured last."},
}
# Shown by the leader alone, and only once it has something to show.
LEADERS_GAUGES: Final[Texts] = {
    "fluffle_version": "Newest version of the model.",
    "fluffle_term": "Term under which this aggregator leads.",
    "fluffle_best_version": "Version that was evaluated best.",
    "fluffle_target_held": "Evaluations in a row that reached the target.",
    "fluffle_evaluated_version": "Version that was evaluated last.",
    "fluffle_last_commit_timestamp_seconds": "Unix time of the last commit.",
}
HISTOGRAMS: Final[Mapping[events.Role, Mapping[str, tuple[str, tuple[float, ...]]]]] = {
    "aggregator": {
        "fluffle_update_staleness_versions": ("Versions by which they were late.", STALENESS_BUCKETS),
        "fluffle_commit_seconds": ("Time to publish a version until confirmed.", COMMIT_BUCKETS_S),
    },
    "worker": {"fluffle_worker_train_seconds": ("Time that a round of training took.", ROUND_BUCKETS_S)},
    "evaluator": {
        "fluffle_evaluator_evaluation_seconds": ("Time that it took to measure a version.", ROUND_BUCKETS_S)
    },
}


class Meter:
    """Counts what one part does.

    An aggregator counts what it commits and refuses while it leads. An update counts, and an evaluation is
    shown, when the version whose record has it is committed: what was only taken in when the connection went
    comes again.
    """

    def __init__(self, role: events.Role, federation: str, name: str) -> None:
        self.registry = registry = CollectorRegistry()
        self._own, self._labels = (federation, name), ("federation", role)
        ProcessCollector(registry=registry)
        counters = {"fluffle_connections": "Connections made to RabbitMQ.", **COUNTERS[role]}
        gauges = {"fluffle_connected": "1 while connected to RabbitMQ, else 0.", **GAUGES[role]}
        self._counters = {
            each: Counter(each, about, self._labels, registry=registry).labels(*self._own)
            for each, about in counters.items()
        }
        self._gauges = {each: self._gauge(each, about).labels(*self._own) for each, about in gauges.items()}
        self._histograms = {
            each: Histogram(each, about, self._labels, buckets=buckets, registry=registry).labels(*self._own)
            for each, (about, buckets) in HISTOGRAMS[role].items()
        }
        self._uncommitted: list[events.Applied | events.Evaluated] = []
        if role == "aggregator":
            self._of_the_leader = {each: self._gauge(each, about) for each, about in LEADERS_GAUGES.items()}
            self._evaluation = self._gauge(
                "fluffle_evaluation", "What the evaluator measured last.", "metric"
            )
            labels = (*self._labels, "reason")
            self._rejected = Counter("fluffle_rejected", "Messages refused.", labels, registry=registry)
            self._reason, self._metric = _Bounded(MAX_REASONS), _Bounded(MAX_METRICS)

    def __call__(self, event: events.Event) -> None:
        """See EventSink."""
        match event:
            case events.Applied() | events.Evaluated():
                self._uncommitted.append(event)
            case events.Committed():
                self._count_commit(event)
            case events.Rejected():
                self._rejected.labels(*self._own, self._reason(event.reason)).inc()
            case events.TookOver():
                self._gauges["fluffle_leading"].set(1)
                self._show("fluffle_term", event.term)
                self._show("fluffle_version", event.version)
            case _:
                self._count_own_work(event)

    @contextmanager
    def over(self, broker: Broker) -> Iterator[Broker]:
        """See EventSink; an aggregator that has lost the connection leads no more."""
        self._counters["fluffle_connections"].inc()
        self._gauges["fluffle_connected"].set(1)
        try:
            yield broker
        finally:
            self._gauges["fluffle_connected"].set(0)
            if "fluffle_leading" in self._gauges:
                self._gauges["fluffle_leading"].set(0)
                self._uncommitted.clear()
                for gauge in (*self._of_the_leader.values(), self._evaluation):
                    gauge.clear()

    def show_spool(self, waiting: Callable[[], int]) -> None:
        """Show how many updates are in a spool, which is asked at each scrape."""
        about = "Updates that wait on its disk for RabbitMQ."
        self._gauge("fluffle_worker_spool_updates", about).labels(*self._own).set_function(waiting)

    def _gauge(self, name: str, about: str, *more_labels: str) -> Gauge:
        return Gauge(name, about, (*self._labels, *more_labels), registry=self.registry)

    def _count_own_work(self, event: events.Event) -> None:
        match event:
            case events.Started():
                self._gauges["fluffle_worker_base_version"].set(event.version)
                self._gauges["fluffle_worker_round_done_ratio"].set(0)
            case events.Progressed():
                self._gauges["fluffle_worker_round_done_ratio"].set(event.done / max(1, event.total))
            case events.Trained():
                self._histograms["fluffle_worker_train_seconds"].observe(event.seconds)
                self._gauges["fluffle_worker_round_done_ratio"].set(1)
            case events.Published():
                self._counters["fluffle_worker_updates_published"].inc()
                self._counters["fluffle_worker_published_bytes"].inc(event.size_bytes)
            case events.Measured():
                self._histograms["fluffle_evaluator_evaluation_seconds"].observe(event.seconds)
                self._gauges["fluffle_evaluator_version"].set(event.version)

    def _count_commit(self, commit: events.Committed) -> None:
        folded = [each for each in self._uncommitted if isinstance(each, events.Applied)]
        evaluated = [each for each in self._uncommitted if isinstance(each, events.Evaluated)]
        self._uncommitted.clear()
        # Sums, since each call costs half a microsecond.
        for name, value in {
            "fluffle_commits": 1,
            "fluffle_updates_applied": len(folded),
            "fluffle_examples_applied": sum(each.examples for each in folded),
            "fluffle_update_bytes": sum(each.size_bytes for each in folded),
            "fluffle_update_float32_bytes": sum(each.plain_bytes for each in folded),
        }.items():
            self._counters[name].inc(value)
        self._histograms["fluffle_commit_seconds"].observe(commit.seconds)
        for each in folded:
            self._histograms["fluffle_update_staleness_versions"].observe(each.staleness)
        self._show("fluffle_version", commit.version)
        self._show("fluffle_term", commit.term)
        self._show("fluffle_target_held", commit.target_held)
        self._show("fluffle_last_commit_timestamp_seconds", time.time())
        if commit.best_version >= 0:
            self._show("fluffle_best_version", commit.best_version)
        if evaluated:
            self._show("fluffle_evaluated_version", evaluated[-1].version)
            for metric, measured in evaluated[-1].metrics.items():
                self._evaluation.labels(*self._own, self._metric(metric)).set(measured)

    def _show(self, name: str, value: float) -> None:
        self._of_the_leader[name].labels(*self._own).set(value)


class _Bounded:
    """Lets at most `most` values of a label through, and calls all others `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if len(self._known) < self._most:
            self._known.add(value)
        return value if value in self._known else OTHER
