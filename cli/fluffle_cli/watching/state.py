"""The state of one federation, seen from outside: records and events go in, views come out. Pure.

Its size is bounded, however long it is kept and whatever it hears: each list, table and curve has a limit.
Times are arguments, in Unix seconds by the clock of the process that watches.
"""

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Final

from fluffle import events
from fluffle.record import Contributor, Evaluation
from fluffle_cli.history import EvaluatedVersion, History
from fluffle_cli.series import Series
from fluffle_cli.watching.parts import Part, Parts
from fluffle_cli.watching.version import Version
from fluffle_cli.watching.view import Activity, FederationView, Happening, QueueStates, Term, Worker

MOST_REFUSALS: Final = 50
MOST_REASONS: Final = 32
MOST_TERMS: Final = 200
RATE_OVER_S: Final = 5.0
# A process that is started again and again waits less than this in between.
RIVALS_OVER_S: Final = 300.0
OTHER_REASONS: Final = "other reasons"
# The least staleness in each row of the histogram.
STALENESS_ROWS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
DIED, LEFT, JOINED, REJECTED, TOOK_OVER = "died", "left", "joined", "rejected", "tookover"


class FederationState:
    """What is known of one federation; `view` shows it."""

    def __init__(self, federation: str, now: float) -> None:
        """Know nothing yet."""
        self.federation = federation
        self.trouble = ""
        # Something has happened that a newer record tells of.
        self.is_behind = True
        self._newest: Version | None = None
        self._queues: QueueStates | None = None
        self._history = History()
        self._parts: dict[events.Role, Parts] = {role: Parts() for role in events.ROLES}
        # As RabbitMQ says, where it can be asked.
        self._connected_aggregators: list[str] | None = None
        self._leader = ""
        self._listens_since = inf
        self._staleness: Counter[int] = Counter()
        self._weights: defaultdict[int, float] = defaultdict(float)
        self._activity: Series[Activity] = Series(merge_activity)
        self._now = Activity(now, 0.0)
        self._recent: deque[tuple[float, int]] = deque()
        self._sent_bytes = self._plain_bytes = 0
        self._reasons: Counter[str] = Counter()
        self._after_the_end = 0
        self._refusals: deque[Happening] = deque(maxlen=MOST_REFUSALS)
        self._terms: dict[int, Term] = {}
        self._commit_s: float | None = None

    def listen_from(self, now: float) -> None:
        """Count rounds and staleness from events from now on; what came before counts from the records."""
        self._listens_since = min(now, self._listens_since)

    def read(self, version: Version) -> None:
        """Take in a version, oldest first; one of an aggregator that has lost the lead is passed over."""
        before = self._newest
        if before and version.rank < before.rank:
            return
        self._newest = version
        self.is_behind = False
        self._history.note_seconds(version.version, version.training_s)
        for evaluation in (version.best, version.evaluation):
            if evaluation:
                self._history.note_evaluation(evaluation.version, evaluation.metrics)
        for term in version.terms:
            self._begin_term(term.term, term.version)
        if before and version.rank == before.rank:
            return
        for one in version.folded:
            if one.received_at < self._listens_since:
                self._note_staleness(one.staleness, one.weight)
                self._history.note_round(one.id.worker, one.id.run, one.loss, one.train_s)

    def hear(self, report: events.Report, now: float) -> None:
        """Take in what a part says; only an aggregator may say what became of updates."""
        parts = self._parts[report.role]
        for each in report.events:
            parts.hear(report.name, each.event, report.role, now)
            if report.role == "aggregator":
                self._hear_aggregator(report.name, each.event, now)
            elif report.role == "worker" and isinstance(each.event, events.Trained):
                run = each.event.update.rpartition("/")[0]
                self._history.note_round(report.name, run, each.event.loss, each.event.seconds)

    def note_process(self, role: events.Role, name: str, state: str) -> None:
        """Set the state of a part as the program that started its process knows it."""
        self._parts[role].setdefault(name, Part()).state = state

    def note_aggregators(self, connected: Mapping[str, bool] | None) -> None:
        """Take in whom RabbitMQ knows, and whether each leads; None when it cannot be asked.

        It is seconds behind: a leader that has said something is known better from that. One that leads since
        before anybody listened, and has had nothing to do, has said nothing.
        """
        self._connected_aggregators = None if connected is None else sorted(connected)
        leading = next((name for name, leads in (connected or {}).items() if leads), "")
        self._leader = self._leader or leading
        if leading and leading == self._leader and self._terms:
            newest = self._terms[max(self._terms)]
            self._terms[newest.term] = replace(newest, leader=newest.leader or leading)

    def look(self, queues: QueueStates, now: float) -> None:
        """Take in what waits in the queues, about once a second; a point of the curves ends here."""
        self._queues = queues
        seconds = max(0.0, now - self._now.at)
        self._activity.add(replace(self._now, at=now, seconds=seconds, waiting=queues.updates_waiting))
        self._now = Activity(now, 0.0)
        if self._newest:
            self._recent.append((now, self._newest.updates))
        while len(self._recent) > 2 and self._recent[1][0] < now - RATE_OVER_S:
            self._recent.popleft()

    def view(self, now: float) -> FederationView:
        """Return what is known at this moment."""
        newest, connected = self._newest, self._connected_aggregators
        aggregators, evaluators = self._parts["aggregator"], self._parts["evaluator"]
        present = aggregators.present if connected is None else connected
        return FederationView(
            federation=self.federation,
            taken_at=now,
            newest=newest,
            queues=self._queues,
            trouble=self.trouble,
            workers={worker.name: worker for worker in self._workers(now)},
            parts={name: part.state for each in (aggregators, evaluators) for name, part in each.items()},
            evaluation=self._with_seconds(newest.evaluation if newest else None),
            best=self._with_seconds(newest.best if newest else None),
            evaluations=list(self._history.evaluations),
            updates_per_s=self._updates_per_s(),
            leader=self._leader,
            standbys=[name for name in present if name != self._leader],
            knows_standbys=connected is not None,
            terms=list(self._terms.values()),
            activity=list(self._activity.points()),
            commit_s=self._commit_s,
            sent_bytes=self._sent_bytes,
            plain_bytes=self._plain_bytes,
            staleness=self._staleness_rows(),
            reasons=dict(self._reasons.most_common()),
            refusals=list(self._refusals),
            after_the_end=self._after_the_end,
        )

    def _workers(self, now: float) -> Iterator[Worker]:
        contributors = self._newest.contributors if self._newest else {}
        weight = sum(each.weight_sum for each in contributors.values())
        examples = sum(each.examples for each in contributors.values() if each.updates)
        parts, is_over = self._parts["worker"], bool(self._newest and self._newest.finished)
        for name in sorted({*contributors, *parts}):
            given, part = contributors.get(name, Contributor()), parts.get(name)
            rounds = self._history.rounds.get(name)
            losses = tuple(rounds.losses) if rounds else ()
            heard_at = max(given.last_update_at, part.heard_at if part else 0.0)
            is_rival_recent = part is not None and part.rival_at >= now - RIVALS_OVER_S and not part.has_left
            yield Worker(
                name=name,
                state=_state_of(given, part, is_over=is_over),
                # Two machines' clocks need not agree.
                seen_s=max(0.0, now - heard_at) if heard_at else None,
                round_s=rounds.seconds if rounds else None,
                updates=given.updates,
                examples=given.examples,
                mean_staleness=given.mean_staleness,
                weight_share=given.weight_sum / weight if weight else 0.0,
                example_share=given.examples / examples if given.updates and examples else 0.0,
                rejected=given.rejected,
                refusal=given.refusal,
                loss=losses[-1] if losses else given.loss,
                losses=losses,
                rival=part.rival if part and is_rival_recent else "",
                is_of_two=bool(rounds and rounds.is_of_two),
            )

    def _updates_per_s(self) -> float | None:
        newest = self._newest
        if newest is None:
            return None
        # At the end the rate is that of the whole, in between that of the last seconds.
        if not newest.finished and len(self._recent) > 1:
            (first, before), (last, after) = self._recent[0], self._recent[-1]
            return (after - before) / (last - first) if last > first else None
        return newest.updates / newest.elapsed_s if newest.elapsed_s else None

    def _with_seconds(self, evaluation: Evaluation | None) -> EvaluatedVersion | None:
        if evaluation is None:
            return None
        seconds = self._history.seconds_of(evaluation.version) or 0.0
        return EvaluatedVersion(evaluation.version, seconds, evaluation.metrics)

    def _hear_aggregator(self, name: str, event: events.Event, now: float) -> None:
        match event:
            case events.Applied():
                self._sent_bytes += event.size_bytes
                self._plain_bytes += event.plain_bytes
                self._note_staleness(event.staleness, event.weight)
                self._now = replace(self._now, updates=self._now.updates + 1)
            case events.Rejected():
                self._note_refusal(event, now)
            case events.Evaluated():
                self._history.note_evaluation(event.version, event.metrics)
            case events.TookOver():
                self.is_behind = True
                if name != self._leader:
                    # It died, or says that it is connected when it comes again.
                    self._parts["aggregator"].pop(self._leader, None)
                self._begin_term(event.term, event.version, leader=name, at=now)
            case events.Committed():
                self.is_behind = True
                if event.started_s is not None:
                    self._history.note_seconds(event.version, max(0.0, event.elapsed_s - event.started_s))
                self._commit_s = event.seconds
                self._now = replace(self._now, commit_s=max(event.seconds, self._now.commit_s or 0.0))
            case _:
                return
        # After the end an aggregator that only comes to see it refuses what is late, and leads nothing.
        if not (self._newest and self._newest.finished and self._leader):
            self._leader = name

    def _note_refusal(self, event: events.Rejected, now: float) -> None:
        if event.reason == events.AFTER_THE_END:
            self._after_the_end += 1
            return
        is_new = event.reason not in self._reasons
        self._reasons[OTHER_REASONS if is_new and len(self._reasons) >= MOST_REASONS else event.reason] += 1
        self._refusals.appendleft(_refusal(event, now))

    def _note_staleness(self, staleness: int, weight: float) -> None:
        row = bisect_right(STALENESS_ROWS, max(0, staleness)) - 1
        self._staleness[row] += 1
        self._weights[row] += weight

    def _staleness_rows(self) -> list[tuple[str, int, float | None]]:
        counts = [self._staleness[row] for row in range(max(self._staleness, default=-1) + 1)]
        return [
            (_staleness_in_words(row), count, self._weights[row] / count if count else None)
            for row, count in enumerate(counts)
        ]

    def _begin_term(
        self, term: int, version: int, *, leader: str | None = None, at: float | None = None
    ) -> None:
        one = self._terms.get(term, Term(term, version))
        seconds = self._history.seconds_of(version) if one.seconds is None else one.seconds
        self._terms[term] = replace(one, leader=leader or one.leader, at=at or one.at, seconds=seconds)
        if len(self._terms) > MOST_TERMS:
            del self._terms[min(self._terms)]


def happenings_in(report: events.Report) -> Iterator[Happening]:
    """Return what a report says that stands in no version's record: who came, left or led, and refusals."""
    for each in report.events:
        happening = _happening(each, report.name)
        if happening:
            yield happening


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


def _happening(happened: events.Happened, name: str) -> Happening | None:
    at = happened.at
    match happened.event:
        case events.Joined():
            return Happening(at=at, name=name, what=JOINED)
        case events.Left(because):
            return Happening(at=at, name=name, what=LEFT, detail=because)
        case events.TookOver(term, version):
            detail = f"leads from version {version} on, as term {term}"
            return Happening(at=at, name=name, what=TOOK_OVER, detail=detail)
        case events.Rejected():
            return _refusal(happened.event, at)
    return None


def _refusal(event: events.Rejected, at: float) -> Happening:
    detail = f"{event.update}: {event.detail}" if event.update else event.detail
    return Happening(at=at, name=event.worker, what=REJECTED, reason=event.reason, detail=detail)


def _state_of(given: Contributor, part: Part | None, *, is_over: bool) -> str:
    if given.rejected and not given.updates:
        return f"only refused: {given.refusal}"
    # After the end nobody trains or waits; a process that died says nothing.
    return "" if part is None or (is_over and not part.has_left) else part.state


def _staleness_in_words(row: int) -> str:
    low = STALENESS_ROWS[row]
    if row + 1 == len(STALENESS_ROWS):
        return f"{low} or more"
    high = STALENESS_ROWS[row + 1] - 1
    return str(low) if low == high else f"{low} to {high}"
