"""All that the live page shows: what was told, the newest record, and what was counted meanwhile. No I/O.

It is of bounded size, however long it is kept and whatever is told: each list, table and curve has a limit.
Times are given to it, Unix time in seconds by the clock of whoever listens.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from fluffle.events import (
    AFTER_THE_END,
    Applied,
    Committed,
    Evaluated,
    Event,
    Joined,
    Left,
    Rejected,
    Report,
    TookOver,
    Trained,
)
from fluffle.record import ModelVersion
from fluffle_cli.dashboard.known import Known
from fluffle_cli.dashboard.live import LiveParts
from fluffle_cli.dashboard.staleness import StalenessHistogram
from fluffle_cli.dashboard.table import Wanted, page_of, rows_of, silences_of
from fluffle_cli.history import History
from fluffle_cli.series import Series
from fluffle_cli.snapshot import QueueStates, Snapshot, snapshot_of
from fluffle_cli.standing import USUAL_METRICS
from fluffle_cli.workers import facts_of

MOST_METRICS: Final = 4
MOST_REJECTIONS: Final = 50
MOST_REASONS: Final = 32
MOST_TERMS: Final = 200
MOST_AGGREGATORS: Final = 100
RATE_OVER_S: Final = 10.0
# A process that is started again and again waits less than this in between.
RIVALS_OVER_S: Final = 300.0
OTHER_REASONS: Final = "other reasons"


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in some seconds, which end at `at`; `commit_s` is None when nothing was committed."""

    at: float
    seconds: float
    updates: int = 0
    waiting: int = 0
    commit_s: float | None = None


@dataclass(slots=True)
class Term:
    """A term's beginning. Of one that was before somebody listened, only what the record says is known."""

    term: int
    version: int
    leader: str | None = None
    at: float | None = None
    seconds: float | None = None


class FederationState:
    """What one federation looks like to whoever listens."""

    def __init__(self, federation: str, now: float) -> None:
        """Know nothing yet."""
        self.federation = federation
        self.known = Known()
        self.trouble = "connecting to the broker"
        # As RabbitMQ says, where it can be asked.
        self._connected_aggregators: list[str] | None = None
        self._queues = QueueStates(updates_waiting=0, aggregator_active=False, rejected_waiting=0)
        self._began = now
        self._workers, self._aggregators = LiveParts(), LiveParts(MOST_AGGREGATORS)
        self.history = History()
        self._metric_names: list[str] = []
        self._staleness = StalenessHistogram()
        self._activity: Series[Activity] = Series(merge_activity)
        self._now = Activity(now, 0.0)
        self._recent: deque[tuple[float, int]] = deque()
        self._updates = 0
        self._sent_bytes, self._plain_bytes = 0, 0
        self._reasons: Counter[str] = Counter()
        self._after_the_end = 0
        self._rejections: deque[dict[str, object]] = deque(maxlen=MOST_REJECTIONS)
        self._terms: dict[int, Term] = {}
        self._leader = ""
        self._commit_s: float | None = None

    def begin_to_listen(self, now: float) -> None:
        """Take down from when on one is told what happens."""
        self._began = now

    def remember(self, version: ModelVersion) -> None:
        """Take in a version of the past, oldest first, for the curves."""
        self._note(version)
        for folded in version.folded:
            # What came later is told of, too.
            if folded.received_at < self._began:
                self._staleness.add(folded.staleness, folded.weight)
                self.history.note_round(folded.id.worker, folded.id.run, folded.loss, folded.train_s)

    def read(self, version: ModelVersion) -> None:
        """Take in a record: from here on it counts, not what was told before."""
        self.known.read(version)
        self._note(version)
        for term in version.terms:
            self._begin_term(term.term, term.version)

    def hear(self, report: Report, now: float) -> None:
        """Take in what a part tells; only the leader of a federation may tell what became of updates."""
        for happened in report.events:
            if report.role == "worker":
                self._workers.hear(report.name, happened.event, now)
                if isinstance(happened.event, Trained):
                    self._hear_of_a_round(report.name, happened.event)
            elif report.role == "aggregator":
                self._aggregators.hear(report.name, happened.event, now)
                self._hear_aggregator(report.name, happened.event, now)

    def note_aggregators(self, connected: Mapping[str, bool] | None) -> None:
        """Take in whom RabbitMQ knows, and whether each leads; None when it cannot be asked.

        It is seconds behind: a leader who has told something is known better from that. One who leads from
        before somebody listened, and has had nothing to do, has told nothing.
        """
        self._connected_aggregators = None if connected is None else list(connected)
        leading = next((name for name, leads in (connected or {}).items() if leads), "")
        self._leader = self._leader or leading
        if leading and leading == self._leader and self._terms:
            newest = self._terms[max(self._terms)]
            newest.leader = newest.leader or leading

    def look(self, queues: QueueStates, now: float) -> None:
        """Take in what waits in the queues, about once a second; a point of the curves ends here."""
        self._queues = queues
        ended = replace(
            self._now, at=now, seconds=max(0.0, now - self._now.at), waiting=queues.updates_waiting
        )
        self._activity.add(ended)
        self._now = Activity(now, 0.0)
        self._recent.append((now, self._updates))
        while len(self._recent) > 2 and self._recent[1][0] < now - RATE_OVER_S:
            self._recent.popleft()

    def snapshot(self, now: float) -> Snapshot:
        """Return what `fluffle status` would show, at the rate of the last seconds."""
        shown = snapshot_of(
            self.known.record, self._queues, federation=self.federation, now=now, history=self.history
        )
        shown = replace(
            shown,
            silent_s=silences_of(shown.workers, self._workers, now),
            rivals=self._workers.rivals(now - RIVALS_OVER_S),
        )
        if shown.finished or len(self._recent) < 2:
            return shown
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        return replace(shown, updates_per_s=(after - before) / (last - first) if last > first else None)

    def page(self, wanted: Wanted, now: float) -> dict[str, object]:
        """Return one page of the workers. Raises KeyError for an unknown column."""
        record = self.known.record
        rows = rows_of(
            facts_of(record.contributors if record else {}, now=now),
            self._workers,
            self.history,
            now,
            is_over=bool(record and record.finished),
        )
        return page_of(rows, wanted, self.history)

    def picture(self, now: float) -> dict[str, object]:
        """Return all but the workers."""
        snapshot = self.snapshot(now)
        best = snapshot.standing.best
        connected = self._connected_aggregators
        present = self._aggregators.present() if connected is None else sorted(connected)
        return {
            "status": snapshot.as_json_without_workers(),
            "trouble": self.trouble,
            "leader": self._leader,
            "standbys": [name for name in present if name != self._leader],
            "knows_standbys": connected is not None,
            "terms": [asdict(each) for each in self._terms.values()],
            "workers": sum(1 for each in snapshot.workers.values() if each.updates),
            "metric": snapshot.standing.metric,
            "metrics": self._metric_names,
            "best": best and [best.version, best.seconds],
            "evaluations": [
                [each.version, each.seconds, *(each.metrics.get(name) for name in self._metric_names)]
                for each in self.history.evaluations
            ],
            "activity": [
                [each.at, each.updates / each.seconds if each.seconds else 0.0, each.waiting, each.commit_s]
                for each in self._activity.points()
            ],
            "commit_s": self._commit_s,
            "sent_bytes": self._sent_bytes,
            "plain_bytes": self._plain_bytes,
            "staleness": self._staleness.rows(),
            "reasons": dict(self._reasons.most_common()),
            "after_the_end": self._after_the_end,
            "rejections": list(self._rejections),
        }

    def _hear_aggregator(self, name: str, event: Event, now: float) -> None:
        if isinstance(event, Joined | Left):
            return
        was_over = bool(self.known.record and self.known.record.finished)
        match event:
            case Applied():
                self._apply(event, now)
            case Rejected():
                self._reject(event, now)
            case Evaluated():
                self.known.evaluated(event, self.federation)
                self._name_metrics(event.metrics)
                self.history.note_evaluation(event.version, event.metrics)
            case TookOver():
                self.known.took_over(event)
                # It died, or it tells that it is connected when it comes again.
                if name != self._leader:
                    self._aggregators.forget(self._leader)
                self._begin_term(event.term, event.version, leader=name, at=now)
            case Committed():
                self.known.committed(event)
                if event.started_s is not None:
                    self.history.note_seconds(event.version, max(0.0, event.elapsed_s - event.started_s))
                self._commit_s = event.seconds
                self._now = replace(self._now, commit_s=max(event.seconds, self._now.commit_s or 0.0))
            case _:
                return
        # After the end an aggregator that only comes to see it refuses what is late, and leads nothing.
        if not (was_over and self._leader):
            self._leader = name

    def _apply(self, event: Applied, now: float) -> None:
        self.known.applied(event, now)
        self._updates += 1
        self._sent_bytes += event.size_bytes
        self._plain_bytes += event.plain_bytes
        self._staleness.add(event.staleness, event.weight)
        self._now = replace(self._now, updates=self._now.updates + 1)

    def _note(self, version: ModelVersion) -> None:
        for evaluation in (version.evaluation, version.best):
            self._name_metrics(evaluation.metrics if evaluation else {})
        self.history.note_version(version)

    def _hear_of_a_round(self, worker: str, event: Trained) -> None:
        run = event.update.rpartition("/")[0]
        self.history.note_round(worker, run, event.loss, event.seconds)

    def _reject(self, event: Rejected, now: float) -> None:
        if event.reason == AFTER_THE_END:
            self._after_the_end += 1
            return
        self.known.rejected(event, now)
        is_new = event.reason not in self._reasons
        self._reasons[OTHER_REASONS if is_new and len(self._reasons) >= MOST_REASONS else event.reason] += 1
        self._rejections.appendleft({"at": now, **asdict(event)})

    def _name_metrics(self, metrics: Mapping[str, float]) -> None:
        usual_first = [*(name for name in USUAL_METRICS if name in metrics), *metrics]
        new = [name for name in dict.fromkeys(usual_first) if name not in self._metric_names]
        self._metric_names = [*self._metric_names, *new][:MOST_METRICS]

    def _begin_term(
        self, term: int, version: int, *, leader: str | None = None, at: float | None = None
    ) -> None:
        one = self._terms.setdefault(term, Term(term, version))
        one.leader, one.at = leader or one.leader, at or one.at
        if one.seconds is None:
            one.seconds = self.history.seconds_of(version)
        if len(self._terms) > MOST_TERMS:
            del self._terms[min(self._terms)]


def merge_activity(earlier: Activity, later: Activity) -> Activity:
    """Merge two neighbours of a curve: what waited and how long it took at the worst, and both's rate."""
    commits = [each.commit_s for each in (earlier, later) if each.commit_s is not None]
    return Activity(
        later.at,
        earlier.seconds + later.seconds,
        earlier.updates + later.updates,
        max(earlier.waiting, later.waiting),
        max(commits, default=None),
    )
