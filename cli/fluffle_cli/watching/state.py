"""The state of one federation, seen from outside: records and events go in, views come out. Pure.

Its size is bounded, however long it is kept and whatever it hears: each list, table and curve has a limit.
Times are arguments, in Unix seconds by the clock of the process that watches.
"""

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Literal

from fluffle import events
from fluffle.record import Contributor, Evaluation
from fluffle_cli.history import EvaluatedVersion, History, Series
from fluffle_cli.watching.view import Activity, FederationView, Happening, QueueStates, Term, Version, Worker

# More parts than any federation has. Beyond it, the one that was silent for longest is forgotten.
MOST_PARTS: Final = 10_000
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
# The state of a part after an event: a word, and mostly a detail behind a colon.
STATES: Final[Mapping[type[events.Event], str]] = {
    events.Joined: "connected",
    events.Started: "training: from version {0.version}",
    events.Progressed: "training: {0.done} of {0.total} minibatches",
    events.Trained: "publishing",
    events.Aborted: "aborted: {0.staleness} versions late",
    events.Published: "published",
    events.Measured: "evaluated: version {0.version}",
    events.Validated: "evaluated: version {0.version}",
    events.Opened: "opened: version {0.version} in {0.seconds:.2f} s",
    events.Withheld: "refused: version {0.version}, {0.rule}",
    events.TookOver: "leading",
    events.Left: "left: {0.because}",
}


@dataclass(slots=True)
class Part:
    """What one worker, evaluator, helper or aggregator says of itself, and when it was last heard.

    `rival` is the other process that last wanted its name.
    """

    state: str = ""
    heard_at: float = 0.0
    rival: str = ""
    rival_at: float = 0.0

    @property
    def has_left(self) -> bool:
        """Whether it ended as it should."""
        return self.state.startswith(LEFT)


class FederationState:
    """What is known of one federation; `view` shows it."""

    def __init__(self, federation: str, now: float) -> None:
        """Know nothing yet."""
        # What a view shows just as it is; `view` adds the rest.
        self.known = FederationView(federation=federation, taken_at=now)
        # Something has happened that a newer record tells of.
        self.is_behind = True
        self._history = History()
        # By role and name, in the order in which they were last heard.
        self._parts: dict[events.Role, dict[str, Part]] = {role: {} for role in events.ROLES}
        # As RabbitMQ says, where it can be asked.
        self._connected_aggregators: list[str] | None = None
        self._listens_since = inf
        self._staleness: Counter[int] = Counter()
        self._weights: defaultdict[int, float] = defaultdict(float)
        self._activity: Series[Activity] = Series(merge_activity)
        self._now = Activity(now, 0.0)
        self._recent: deque[tuple[float, int]] = deque()
        self._reasons: Counter[str] = Counter()
        self._refusals: deque[Happening] = deque(maxlen=MOST_REFUSALS)
        self._terms: dict[int, Term] = {}

    def listen_from(self, now: float) -> None:
        """Count rounds and staleness from events from now on; what came before counts from the records."""
        self._listens_since = min(now, self._listens_since)

    def read(self, version: Version) -> None:
        """Take in a version, oldest first; one of an aggregator that has lost the lead is passed over."""
        before = self.known.newest
        if before and version.rank < before.rank:
            return
        if before and version.terms[:1] != before.terms[:1]:
            self._forget_before(version)
        elif before and version.version < before.version:
            # An earlier version was restored.
            self._history.forget_evaluations_after(version.version)
        self.known.newest = version
        self.is_behind = False
        self._history.note_seconds(version.version, version.training_s)
        for evaluation in (version.best, version.deciding_evaluation):
            if evaluation:
                self._history.note_evaluation(evaluation.version, evaluation.metrics)
        for term in version.terms:
            self._begin_term(term.term, term.version)
        if before and version.rank == before.rank:
            return
        for one in version.folded:
            if one.received_at < self._listens_since:
                self._note_staleness(one.staleness, one.weight)
                self._history.note_round(
                    one.id.worker,
                    one.id.run,
                    one.loss,
                    one.train_s,
                    steps=one.steps,
                    batch_size=one.batch_size,
                )

    def _forget_before(self, version: Version) -> None:
        """Drop what was seen of a federation that was reset: this is a version of the new one."""
        first = min((one.term for one in version.terms), default=version.term)
        self._history = History()
        self.known.survey_answers = 0
        self._terms = {term: one for term, one in self._terms.items() if term >= first}
        self._staleness.clear()
        self._weights.clear()

    def hear(self, report: events.Report, now: float) -> None:
        """Take in what a part says; only an aggregator may say what became of updates."""
        parts = self._parts[report.role]
        part = parts[report.name] = parts.pop(report.name, Part())
        part.heard_at = now
        if len(parts) > MOST_PARTS:
            del parts[next(iter(parts))]
        for event in (each.event for each in report.events):
            stands_by = isinstance(event, events.Joined) and report.role == "aggregator"
            state = "standing by" if stands_by else STATES.get(type(event), "").format(event)
            part.state = state or part.state
            if isinstance(event, events.TurnedAway):
                part.rival, part.rival_at = event.other, now
            if report.role == "aggregator":
                self._hear_aggregator(report.name, event, now)
            elif report.role == "worker" and isinstance(event, events.Trained):
                run = event.update.rpartition("/")[0]
                self._history.note_round(report.name, run, event.loss, event.seconds)

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
        self.known.leader = self.known.leader or leading
        if leading and leading == self.known.leader and self._terms:
            newest = self._terms[max(self._terms)]
            self._terms[newest.term] = replace(newest, leader=newest.leader or leading)

    def look(self, queues: QueueStates, now: float) -> None:
        """Take in what waits in the queues, about once a second; a point of the curves ends here."""
        self.known.queues = queues
        seconds = max(0.0, now - self._now.at)
        self._activity.add(replace(self._now, at=now, seconds=seconds, waiting=queues.updates_waiting))
        self._now = Activity(now, 0.0)
        if self.known.newest:
            self._recent.append((now, self.known.newest.updates))
        while len(self._recent) > 2 and self._recent[1][0] < now - RATE_OVER_S:
            self._recent.popleft()

    def view(self, now: float) -> FederationView:
        """Return what is known at this moment."""
        connected = self._connected_aggregators
        aggregators, evaluators = self._parts["aggregator"], self._parts["evaluator"]
        present = [name for name, part in aggregators.items() if not part.has_left]
        present = present if connected is None else connected
        evaluation, best = self._evaluation_and_best()
        return replace(
            self.known,
            taken_at=now,
            workers={worker.name: worker for worker in self._workers(now)},
            parts={name: part.state for each in (aggregators, evaluators) for name, part in each.items()},
            helpers={name: part.state for name, part in self._parts["helper"].items()},
            evaluation=evaluation,
            best=best,
            evaluations=list(self._history.evaluations),
            updates_per_s=self._updates_per_s(),
            standbys=[name for name in present if name != self.known.leader],
            knows_standbys=connected is not None,
            terms=list(self._terms.values()),
            activity=list(self._activity.points),
            staleness=self._staleness_rows(),
            reasons=dict(self._reasons.most_common()),
            refusals=list(self._refusals),
        )

    def _workers(self, now: float) -> Iterator[Worker]:
        contributors = self.known.newest.contributors if self.known.newest else {}
        weight = sum(each.weight_sum for each in contributors.values())
        examples = sum(each.examples for each in contributors.values() if each.updates)
        parts = self._parts["worker"]
        for name in sorted({*contributors, *parts}):
            given, part = contributors.get(name, Contributor()), parts.get(name) or Part()
            rounds = self._history.rounds.get(name)
            losses = tuple(rounds.losses) if rounds else ()
            heard_at = max(given.last_update_at, part.heard_at)
            # After the end nobody trains or waits; a process that died says nothing.
            state = part.state if part.has_left or not self.known.finished else ""
            if given.rejected and not given.updates:
                state = f"only refused: {given.refusal}"
            is_rival_recent = part.rival_at >= now - RIVALS_OVER_S and not part.has_left
            yield Worker(
                name=name,
                state=state,
                # Two machines' clocks need not agree.
                seen_s=max(0.0, now - heard_at) if heard_at else None,
                round_s=rounds.seconds if rounds else None,
                steps=rounds.steps if rounds else None,
                batch_size=rounds.batch_size if rounds else None,
                updates=given.updates,
                examples=given.examples or None,
                mean_staleness=given.mean_staleness,
                weight_share=given.weight_sum / weight if weight else 0.0,
                example_share=given.examples / examples if given.updates and examples else None,
                model_share=given.share,
                epsilon=self.known.newest.epsilon_of(name) if self.known.newest else None,
                rejected=given.rejected,
                refusal=given.refusal,
                loss=losses[-1] if losses else given.loss,
                losses=losses,
                rival=part.rival if is_rival_recent else "",
                is_of_two=bool(rounds and rounds.is_of_two),
            )

    def _updates_per_s(self) -> float | None:
        newest = self.known.newest
        if newest is None:
            return None
        # At the end the rate is that of the whole, in between that of the last seconds.
        if not newest.finished and len(self._recent) > 1:
            (first, before), (last, after) = self._recent[0], self._recent[-1]
            return (after - before) / (last - first) if last > first else None
        return newest.updates / newest.elapsed_s if newest.elapsed_s else None

    def _evaluation_and_best(self) -> tuple[EvaluatedVersion | None, EvaluatedVersion | None]:
        """Return the newest and the best evaluation: of the newest record, or of an event since then."""
        newest, yardstick = self.known.newest, self.known.yardstick
        # Only a record with an evaluation says what is best.
        if newest is None or (recorded := newest.deciding_evaluation) is None:
            return None, None
        evaluation, best = self._with_seconds(recorded), self._with_seconds(newest.best)
        for each in self._history.evaluations:
            if each.version > recorded.version:
                evaluation = each
                if yardstick and yardstick.is_better(each.metrics, best.metrics if best else {}):
                    best = each
        return evaluation, best

    def _with_seconds(self, evaluation: Evaluation | None) -> EvaluatedVersion | None:
        if evaluation is None:
            return None
        seconds = self._history.seconds_of(evaluation.version) or 0.0
        return EvaluatedVersion(evaluation.version, seconds, evaluation.metrics)

    def _hear_aggregator(self, name: str, event: events.Event, now: float) -> None:
        match event:
            case events.Applied():
                self.known.sent_bytes += event.size_bytes
                self.known.plain_bytes += event.plain_bytes
                self._note_staleness(event.staleness, event.weight)
                self._now = replace(self._now, updates=self._now.updates + 1)
            case events.Rejected():
                self._note_refusal(event, now)
            case events.Evaluated():
                if event.by == self._who_decides():
                    self._history.note_evaluation(event.version, event.metrics)
            case events.TookOver():
                self.is_behind = True
                if name != self.known.leader:
                    # It died, or says that it is connected when it comes again.
                    self._parts["aggregator"].pop(self.known.leader, None)
                self._begin_term(event.term, event.version, leader=name, at=now)
            case events.Committed():
                self.is_behind = True
                self._history.note_seconds(event.version, event.training_s)
                self.known.commit_s = event.seconds
                self._now = replace(self._now, commit_s=max(event.seconds, self._now.commit_s or 0.0))
            case (
                events.Answered()
                | events.Closed()
                | events.Unmasked()
                | events.Awaiting()
                | events.Contradicted()
            ):
                self._hear_what_is_awaited(event)
            case _:
                return
        # After the end an aggregator that only comes to see it refuses what is late, and leads nothing.
        if not (self.known.finished and self.known.leader):
            self.known.leader = name

    def _hear_what_is_awaited(self, event: events.Answered | events.OfSums) -> None:
        match event:
            case events.Answered():
                self.known.survey_answers = event.answered
            case events.Contradicted():
                self.known.contradicting = event.helpers
            case events.Awaiting():
                self.known.sum_waits = f"{event.missing}, for {event.seconds:.0f} s"
            case _:
                self.known.sum_waits = ""

    def _who_decides(self) -> Literal["evaluator", "sites"]:
        newest = self.known.newest
        if newest is None or newest.plan.sites_decide:
            return "sites" if newest else "evaluator"
        return "sites" if newest.site_evaluation and not newest.evaluation else "evaluator"

    def _note_refusal(self, event: events.Rejected, now: float) -> None:
        if event.reason == events.AFTER_THE_END:
            self.known.after_the_end += 1
            return
        is_new = event.reason not in self._reasons
        self._reasons[OTHER_REASONS if is_new and len(self._reasons) >= MOST_REASONS else event.reason] += 1
        self._refusals.appendleft(refusal_of(event, now))

    def _note_staleness(self, staleness: int, weight: float) -> None:
        row = bisect_right(STALENESS_ROWS, max(0, staleness)) - 1
        self._staleness[row] += 1
        self._weights[row] += weight

    def _staleness_rows(self) -> list[tuple[str, int, float | None]]:
        rows: list[tuple[str, int, float | None]] = []
        for row in range(max(self._staleness, default=-1) + 1):
            low, count = STALENESS_ROWS[row], self._staleness[row]
            words = f"{low} or more"
            if row + 1 < len(STALENESS_ROWS):
                high = STALENESS_ROWS[row + 1] - 1
                words = str(low) if low == high else f"{low} to {high}"
            rows.append((words, count, self._weights[row] / count if count else None))
        return rows

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
        at, name = each.at, report.name
        match each.event:
            case events.Joined():
                yield Happening(at=at, name=name, what=JOINED)
            case events.Left(because):
                yield Happening(at=at, name=name, what=LEFT, detail=because)
            case events.TookOver(term, version):
                detail = f"leads from version {version} on, as term {term}"
                yield Happening(at=at, name=name, what=TOOK_OVER, detail=detail)
            case events.Rejected():
                yield refusal_of(each.event, at)


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


def refusal_of(event: events.Rejected, at: float) -> Happening:
    """Return the happening of a refused message."""
    detail = f"{event.update}: {event.detail}" if event.update else event.detail
    return Happening(at=at, name=event.worker, what=REJECTED, reason=event.reason, detail=detail)
