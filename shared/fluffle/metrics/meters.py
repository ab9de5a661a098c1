"""What each part counts, named and measured as Prometheus has it; docs/how-to/prometheus.md lists it.

A meter is an EventSink: it counts the events of its own process. Labels are bounded: a part's own name is the
same on all that it serves, and a leader makes no label of a name that others chose.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from fluffle import events
from fluffle.broker import Broker
from fluffle.fields import MAX_METRICS

# The further values of a label are counted under this one.
OTHER: Final = "other"
MAX_VALUES: Final[Mapping[str, int]] = {"reason": 64, "rule": 16, "mechanism": 3, "metric": MAX_METRICS}
Staleness: Final = partial(Histogram, buckets=(0, 1, 2, 4, 8, 16, 32, 64, 128))
CommitSeconds: Final = partial(
    Histogram, buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
)
RoundSeconds: Final = partial(
    Histogram, buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
)

Metric = Counter | Gauge | Histogram
# The kind of each metric, what it is, and a label that it has besides those of its part.
Kinds = Mapping[str, tuple[Callable[..., Metric], str] | tuple[Callable[..., Metric], str, str]]
EVERY_PART: Final[Kinds] = {
    "fluffle_connections": (Counter, "Connections made to RabbitMQ."),
    "fluffle_connected": (Gauge, "1 while connected to RabbitMQ, else 0."),
}
METRICS: Final[Mapping[events.Role, Kinds]] = {
    "aggregator": {
        "fluffle_leading": (Gauge, "1 while this aggregator leads, 0 as a standby."),
        "fluffle_commits": (Counter, "Versions committed."),
        "fluffle_commit_seconds": (CommitSeconds, "Time to publish a version until confirmed."),
        "fluffle_updates_applied": (Counter, "Updates in the versions committed."),
        "fluffle_examples_applied": (Counter, "Training examples that they claim."),
        "fluffle_update_bytes": (Counter, "Size of the applied updates as they came."),
        "fluffle_update_float32_bytes": (Counter, "Size of their vectors without a codec."),
        "fluffle_update_staleness_versions": (Staleness, "Versions by which they were late."),
        "fluffle_rejected": (Counter, "Messages refused.", "reason"),
        "fluffle_sums_opened": (Counter, "Sums of secure aggregation that helpers have opened."),
        "fluffle_sum_opening_seconds": (CommitSeconds, "Time from a full buffer to its opened sum."),
    },
    "worker": {
        "fluffle_worker_base_version": (Gauge, "Version that it trains from."),
        "fluffle_worker_round_done_ratio": (Gauge, "Share of the round that is done."),
        "fluffle_worker_train_seconds": (RoundSeconds, "Time that a round of training took."),
        "fluffle_worker_rounds_aborted": (
            Counter,
            "Rounds ended early: too stale.",
        ),
        "fluffle_worker_validation_version": (Gauge, "Version that it evaluated last, on data of its own."),
        "fluffle_worker_validation_seconds": (RoundSeconds, "Time that it took to evaluate a version."),
        "fluffle_worker_validation": (Gauge, "What it measured last, on data of its own.", "metric"),
        "fluffle_worker_updates_published": (Counter, "Updates that RabbitMQ has confirmed."),
        "fluffle_worker_published_bytes": (Counter, "Size of those updates."),
        "fluffle_worker_spool_updates": (Gauge, "Updates that wait on its disk for RabbitMQ."),
    },
    "evaluator": {
        "fluffle_evaluator_version": (Gauge, "Version that it measured last."),
        "fluffle_evaluator_evaluation_seconds": (RoundSeconds, "Time that it took to measure a version."),
    },
    "helper": {
        "fluffle_helper_sums_opened": (Counter, "Sums opened for the leader."),
        "fluffle_helper_opening_seconds": (CommitSeconds, "Time that it took to open a sum."),
        "fluffle_helper_refused": (Counter, "Sums that it did not open.", "rule"),
        "fluffle_helper_newest_number": (Gauge, "Number of the close record that it answered last."),
    },
}
# Shown by the leader alone, and only once it has something to show.
LEADERS: Final[Kinds] = {
    "fluffle_version": (Gauge, "Newest version of the model."),
    "fluffle_term": (Gauge, "Term under which this aggregator leads."),
    "fluffle_best_version": (Gauge, "Version that was evaluated best."),
    "fluffle_target_held": (Gauge, "Evaluations in a row that reached the target."),
    "fluffle_evaluated_version": (Gauge, "Version that was evaluated last."),
    "fluffle_evaluation": (Gauge, "What the evaluator, or all sites, measured last.", "metric"),
    "fluffle_last_commit_timestamp_seconds": (Gauge, "Unix time of the last commit."),
    "fluffle_privacy_epsilon": (
        Gauge,
        "Epsilon that the worker with the most updates has spent.",
        "mechanism",
    ),
    "fluffle_privacy_sums": (Gauge, "Sums with noise that were shown."),
    "fluffle_sealed_bytes": (Gauge, "Bytes of ciphertexts in each version."),
    "fluffle_sealed_range_used": (Gauge, "Share of its range that the sealed sum may have come to."),
    "fluffle_sealed_refreshes": (Gauge, "Times that the sealed sum was encrypted anew."),
}


class Meter:
    """Counts what one part does.

    An aggregator counts what it commits and refuses while it leads. An update counts, and an evaluation is
    shown, when the version whose record has it is committed: what was only taken in when the connection went
    comes again. `waiting`, which is asked at each scrape, says how many updates are in a worker's spool.
    """

    def __init__(
        self, role: events.Role, federation: str, name: str, waiting: Callable[[], int] | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self._role, self._own = role, (federation, name)
        self._metrics: dict[str, Metric] = {}
        self._values: dict[str, set[str]] = {label: set() for label in MAX_VALUES}
        self._uncommitted: list[events.Applied | events.Evaluated] = []
        ProcessCollector(registry=self.registry)
        leaders = LEADERS if role == "aggregator" else {}
        for each, (kind, about, *more) in {**EVERY_PART, **METRICS[role], **leaders}.items():
            self._metrics[each] = kind(each, about, ("federation", role, *more), registry=self.registry)
            if each not in leaders and not more:
                self._metrics[each].labels(*self._own)
        spool = self._metrics.get("fluffle_worker_spool_updates")
        if waiting and isinstance(spool, Gauge):
            spool.labels(*self._own).set_function(waiting)

    def __call__(self, event: events.Event) -> None:
        """See EventSink."""
        match event:
            case events.Applied() | events.Evaluated():
                self._uncommitted.append(event)
            case events.Committed():
                self._count_commit(event)
            case events.Spent():
                self._note("fluffle_privacy_epsilon", event.epsilon, mechanism=event.mechanism)
                self._note("fluffle_privacy_sums", event.steps)
            case events.SumSealed():
                self._note("fluffle_sealed_bytes", event.size_bytes)
                self._note("fluffle_sealed_range_used", event.range_used)
                self._note("fluffle_sealed_refreshes", event.refreshes)
            case events.Rejected():
                self._note("fluffle_rejected", 1, reason=event.reason)
            case events.Unmasked():
                self._note("fluffle_sums_opened", 1)
                self._note("fluffle_sum_opening_seconds", event.seconds)
            case events.TookOver():
                self._note("fluffle_leading", 1)
                self._note("fluffle_term", event.term)
                self._note("fluffle_version", event.version)
            case _:
                self._count_of_member(event)

    def _count_of_member(self, event: events.Event) -> None:
        """Take in what a member says: a worker, an evaluator or a helper."""
        match event:
            case events.Started():
                self._note("fluffle_worker_base_version", event.version)
                self._note("fluffle_worker_round_done_ratio", 0)
            case events.Progressed():
                self._note("fluffle_worker_round_done_ratio", event.done / max(1, event.total))
            case events.Trained():
                self._note("fluffle_worker_train_seconds", event.seconds)
                self._note("fluffle_worker_round_done_ratio", 1)
            case events.Aborted():
                self._note("fluffle_worker_rounds_aborted", 1)
            case events.Published():
                self._note("fluffle_worker_updates_published", 1)
                self._note("fluffle_worker_published_bytes", event.size_bytes)
            case events.Validated():
                self._note("fluffle_worker_validation_seconds", event.seconds)
                self._note("fluffle_worker_validation_version", event.version)
                for metric, measured in event.metrics.items():
                    self._note("fluffle_worker_validation", measured, metric=metric)
            case events.Measured():
                self._note("fluffle_evaluator_evaluation_seconds", event.seconds)
                self._note("fluffle_evaluator_version", event.version)
            case _:
                self._count_of_helper(event)

    def _count_of_helper(self, event: events.Event) -> None:
        match event:
            case events.Opened():
                self._note("fluffle_helper_sums_opened", 1)
                self._note("fluffle_helper_opening_seconds", event.seconds)
                self._note("fluffle_helper_newest_number", event.number)
            case events.Withheld():
                self._note("fluffle_helper_refused", 1, rule=event.rule)
                self._note("fluffle_helper_newest_number", event.number)

    @contextmanager
    def over(self, broker: Broker) -> Iterator[Broker]:
        """See EventSink; an aggregator that has lost the connection leads no more."""
        self._note("fluffle_connections", 1)
        self._note("fluffle_connected", 1)
        try:
            yield broker
        finally:
            self._note("fluffle_connected", 0)
            if self._role == "aggregator":
                self._note("fluffle_leading", 0)
                self._uncommitted.clear()
                for name in LEADERS:
                    self._metrics[name].clear()

    def _count_commit(self, commit: events.Committed) -> None:
        folded = [each for each in self._uncommitted if isinstance(each, events.Applied)]
        evaluated = [each for each in self._uncommitted if isinstance(each, events.Evaluated)]
        self._uncommitted.clear()
        self._note("fluffle_commits", 1)
        self._note("fluffle_commit_seconds", commit.seconds)
        self._note("fluffle_updates_applied", len(folded))
        self._note("fluffle_examples_applied", sum(each.examples for each in folded))
        self._note("fluffle_update_bytes", sum(each.size_bytes for each in folded))
        self._note("fluffle_update_float32_bytes", sum(each.plain_bytes for each in folded))
        for each in folded:
            self._note("fluffle_update_staleness_versions", each.staleness)
        self._note("fluffle_version", commit.version)
        self._note("fluffle_term", commit.term)
        self._note("fluffle_target_held", commit.target_held)
        self._note("fluffle_last_commit_timestamp_seconds", time.time())
        if commit.best_version >= 0:
            self._note("fluffle_best_version", commit.best_version)
        # Metrics of an evaluator and those of all sites have different names.
        for evaluation in evaluated:
            self._note("fluffle_evaluated_version", evaluation.version)
            for metric, measured in evaluation.metrics.items():
                self._note("fluffle_evaluation", measured, metric=metric)

    def _note(self, name: str, value: float, **label: str) -> None:
        """Add to a counter, set a gauge, or take a value into a histogram."""
        more = [self._bounded(*each) for each in label.items()]
        metric = self._metrics[name].labels(*self._own, *more)
        match metric:
            case Counter():
                metric.inc(value)
            case Gauge():
                metric.set(value)
            case Histogram():
                metric.observe(value)

    def _bounded(self, label: str, value: str) -> str:
        """Let the first values of a label through, and call all others `other`."""
        known = self._values[label]
        if len(known) < MAX_VALUES[label]:
            known.add(value)
        return value if value in known else OTHER
