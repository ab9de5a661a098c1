"""The leading aggregator as a state machine: what it does with each message, and when it commits. Pure.

Each method returns effects, which leading.py performs in their order on the one channel that the leader
consumes, publishes and acks on (rule 4 of docs/architecture.md). A commit is performed in full before the
next message is taken in.
"""

from collections.abc import Sequence

from fluffle.broker import Delivery
from fluffle.events import Applied, Rejected
from fluffle.record import Evaluation, Folded, Hello, ModelVersion, Rank
from fluffle.record_wire import checksum_of, require_readable_version
from fluffle.secure.committee import Committee
from fluffle.secure.sums import SumRecord
from fluffle.sites import SiteEvaluation
from fluffle.survey.messages import SiteStatistics
from fluffle.topology import Topology
from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule, prefetch_of
from fluffle_aggregator.effects import Ack, Commit, Effect, Log, Now, Reject, Tell, TryOut, info, warning
from fluffle_aggregator.gates.fitting import FINISHED
from fluffle_aggregator.gates.gate import Incoming, Refusal
from fluffle_aggregator.gates.limits import NOT_MISSED, Limits, gates_of
from fluffle_aggregator.gates.rates import Rates
from fluffle_aggregator.gates.sender import FOREIGN_SENDER
from fluffle_aggregator.gates.share import OVER_SHARE
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.intake import Postponed, Refreshed, TakenIn, TurnedDown, take_in
from fluffle_aggregator.missing import MissingUpdates
from fluffle_aggregator.reports import Reports
from fluffle_aggregator.secure.securing import Securing
from fluffle_aggregator.surveying import Surveying
from fluffle_aggregator.told import told_at_takeover, told_of, told_of_commit, told_of_few

# Deliveries before this one, after which a message may have been the cause that aggregators died.
SUSPICIOUS_AFTER = 2
CRASHES = "crashes"
# How long a worker that was refused waits to be told, while no version is made for other reasons.
REFUSALS_TOLD_AFTER_S = 10.0


class Leader:
    """The one aggregator that folds and commits."""

    def __init__(
        self,
        model: GlobalModel,
        topology: Topology,
        limits: Limits,
        schedule: CommitSchedule,
        *,
        parent: str,
        now: Now,
        committee: Committee | None = None,
        sums: Sequence[SumRecord] = (),
    ) -> None:
        """Go on from a model whose newest record has the digest `parent`.

        With secure aggregation, `committee` are the helpers, and `sums` those found in the head.
        """
        self.model = model
        self.parent = parent
        self._topology = topology
        self._schedule = schedule
        has_rates = limits.limit_messages is not None or limits.limit_mib is not None
        self._rates = Rates(limits) if has_rates else None
        self._gates = gates_of(limits, model.strategy, topology)
        # In synchronous rounds a version that only tells of refusals ends the round of everybody who trains.
        self._is_synchronous = model.strategy.one_update_per_version
        self._refusals_told_after_s = (
            schedule.buffer_timeout_s if self._is_synchronous else REFUSALS_TOLD_AFTER_S
        )
        # Whether an update of this synchronous round was refused: its worker waits for the next version.
        self._is_round_short = False
        self._missing = MissingUpdates()
        # The message that was counted and tried before.
        self._known = 0
        # The tags of the updates that are folded but not committed yet.
        self.held: list[int] = []
        most_held = prefetch_of(model.strategy, schedule, is_secure=committee is not None) - 1
        self._reports = Reports(model, topology, limits, most_held=most_held, clock=now.clock)
        self._surveying = Surveying(topology)
        self._securing: Securing | None = None
        if committee is not None:
            self._securing = Securing(model, committee, sums, schedule.buffer_timeout_s, clock=now.clock)
        self._refused_from = self._led_from = self._committed_at = self._oldest_held = now.clock

    @property
    def unacked(self) -> int:
        """The number of updates that no committed version contains yet."""
        return len(self.held) + (len(self._securing.waiting) if self._securing else 0)

    @property
    def finished(self) -> str:
        """Why the federation has ended; empty until the last version is published."""
        return self.model.record.finished

    def begin(self, now: Now) -> list[Effect]:
        """Take the lead."""
        model, record = self.model, self.model.record
        if self.finished:
            # It came to see the end and to leave: nobody takes that for a takeover.
            line = "the federation has finished already: to train on, export its model and start another one"
            return [info(line, because=self.finished, version=record.version)]
        effects = told_at_takeover(model)
        effects += self._surveying.begin(model)
        if self._securing:
            effects += self._securing.begin()
        if not model.has_news or model.over:
            return effects
        if model.has_another_plan:
            # Until the workers read of it, they train and send what this leader would refuse.
            line = "the plan has changed: publishing the model with the new one"
            effects.append(warning(line, before=record.strategy, now=str(model.strategy)))
        # The sum that was closed for the next version brings the new plan with it.
        return effects if self.awaits_openings else [*effects, self._commit(now)]

    def take_in(self, delivery: Delivery, now: Now) -> list[Effect]:
        """Take in one message: fold it, note it, or refuse it."""
        is_new = delivery.tag != self._known
        # Before anything is read of it, so that a flood is cheap.
        if is_new and self._rates and (refused := self._rates.refusal(delivery, now=now.clock)):
            return self._refuse(delivery, refused, now)
        if is_new and delivery.redeliveries >= SUSPICIOUS_AFTER and not self._has_returned(delivery):
            line = "trying a message in another process: aggregators died when they had it"
            return [warning(line, deliveries=delivery.redeliveries), TryOut(delivery)]
        secure = self.model.secure
        applied = secure.with_waiting(self.model.applied) if secure else self.model.applied
        taken = take_in(delivery, self.model, self._gates, now=now.unix)
        match taken:
            case TakenIn(incoming, folded):
                return self._hold(incoming, folded, applied, now)
            case Refreshed(update):
                return self._hold_refresh(delivery, update, now)
            case Postponed(update):
                kept = self._securing.keep(delivery, update, now.clock) if self._securing else []
                return self._turn_down(delivery, kept, update, now) if isinstance(kept, Refusal) else kept
            case TurnedDown(refusal, update):
                return self._turn_down(delivery, refusal, update, now)
            case Evaluation() | SiteEvaluation():
                return self._take_in_report(delivery, taken, now)
            case SiteStatistics():
                found = self._surveying.take_in(delivery, taken, self.model, now=now.clock)
                return self._refuse(delivery, found, now) if isinstance(found, Refusal) else list(found)
            case Hello():
                self._reports.note_hello(delivery, taken.name)
                greeting = Log("DEBUG", "connected", {"name": taken.name, "user": delivery.user})
                return [greeting, Ack((delivery.tag,))]

    @property
    def awaits_openings(self) -> bool:
        """Whether a sum waits for its openings, which should be looked for more often than for messages."""
        return self._securing is not None and self._securing.awaited is not None

    def take_answer(self, answer: Delivery) -> list[Effect]:
        """Take in what a helper has answered to a close record."""
        return self._securing.take_answer(answer) if self._securing else []

    def tried(self, delivery: Delivery, ended: str, now: Now) -> list[Effect]:
        """Take in a suspicious message, unless the process that tried it `ended` badly."""
        if ended:
            detail = f"after {delivery.redeliveries} deliveries, a process that tried this message {ended}"
            return self._refuse(delivery, Refusal(CRASHES, detail), now)
        return self._take_in_again(delivery, now)

    def _has_returned(self, delivery: Delivery) -> bool:
        """Return whether this leader has survived a message, and gave it back."""
        return self._securing is not None and self._securing.waiting.has_returned(delivery)

    def _take_in_again(self, delivery: Delivery, now: Now) -> list[Effect]:
        """Take in a message that was tried, or that had to wait."""
        self._known = delivery.tag
        return self.take_in(delivery, now)

    def tick(self, now: Now) -> list[Effect]:
        """Commit, close or finish if it is time to."""
        model, schedule = self.model, self._schedule
        if self.finished:
            return []
        if model.over:
            return self._finish_when_evaluated(now)
        surveyed = self._surveying.when_due(model, elapsed_s=self._elapsed_s(now), now=now.clock)
        if surveyed is not None:
            surveyed += self._securing.end_survey(model) if self._securing else []
            return [*surveyed, *self.commit_newer(now)]
        started_s = model.draft.started_s
        reached = model.goal.out_of_patience(model.draft) or model.goal.reached(
            version=model.version,
            updates=model.updates,
            training_s=0.0 if started_s is None else self._elapsed_s(now) - started_s,
            target_held=model.draft.target_held,
            not_finite_held=model.draft.not_finite_held,
        )
        is_idle = not self.held and (model.secure is None or model.secure.is_idle)
        is_quiet = is_idle and now.clock - self._committed_at >= schedule.buffer_timeout_s
        if reached := reached or model.why_over(is_quiet=is_quiet):
            return self._close_the_federation(reached, now)
        if is_quiet and model.private and model.private.is_stuck:
            model.private.skip(Rank(model.term, model.version + 1))
            return [info("no worker may send yet: leaving out a sum"), *self.commit_newer(now)]
        if self._securing and (effects := self._tick_secure(self._securing, now)):
            return effects
        if self.held and now.clock - self._oldest_held >= schedule.buffer_timeout_s:
            line = info("the buffer has waited long enough: using it as it is", updates=len(self.held))
            return [line, *self.commit_newer(now)]
        # Never with something in the buffer: the record would name it as applied, and its vector lack it.
        if not model.in_buffer and schedule.is_due(
            model.steps, since_commit_s=now.clock - self._committed_at
        ):
            return [self._commit(now)]
        refused_s = now.clock - self._refused_from
        # A sum makes the very next version: none may come before it.
        is_between = not (self._securing.needs_the_next_version(model) if self._securing else self.held)
        is_waited_for = model.contributors.untold_refusals or self._is_round_short
        if is_waited_for and is_between and refused_s >= self._refusals_told_after_s:
            return self.commit_newer(now)
        return [
            *self._reports.release_overdue(clock=now.clock, after_s=schedule.buffer_timeout_s),
            *self._reports.look_for_silent(clock=now.clock, elapsed_s=self._elapsed_s(now)),
        ]

    def _tick_secure(self, securing: Securing, now: Now) -> list[Effect]:
        """Go on with what secure aggregation waits for; nothing if there is nothing to do."""
        if securing.awaited is None:
            effects: list[Effect] = []
            if self._is_synchronous:
                held_from, is_short = self._oldest_held, self._is_round_short
                released = securing.end_round(self.model, now.clock, held_from=held_from, is_short=is_short)
                if released:
                    return [*released, *self.commit_newer(now)]
            # A full buffer first: what waits beside it is for the next one.
            while not (
                due := securing.when_due(self.model, now.clock, self._oldest_held, self._elapsed_s(now))
            ):
                if (delivery := securing.next_waiting(self.model)) is None:
                    break
                effects += self._take_in_again(delivery, now)
            return [*effects, *due]
        settled = securing.go_on(self.model, now.clock)
        if isinstance(settled, list):
            return settled
        if not settled.is_in_model:
            return [*settled.effects, *self.commit_newer(now)]
        self.held = securing.waiting.take_held()
        noted = self._reports.note_of_sum(settled.evaluation) if settled.evaluation else []
        return [*settled.effects, *noted, self._commit(now)]

    def absent(self, workers: Sequence[str]) -> list[Effect]:
        """Go on without the evaluations of workers that RabbitMQ does not know any more."""
        return self._reports.forget(workers)

    def commit_newer(self, now: Now) -> list[Effect]:
        """Publish a new version, of the same values if no update has come."""
        effects = self._step_early()
        self.model.make_newer()
        return [*effects, self._commit(now)]

    def committed(self, record: ModelVersion, *, digest: str, took_s: float, now: Now) -> list[Effect]:
        """Go on from a version that the broker has confirmed: ack the messages that are in it."""
        effects: list[Effect] = [
            Ack((*self.held, *self._surveying.held, *self._reports.release())),
            *told_of_commit(record, took_s),
        ]
        effects += self._reports.warn_of_no_report(record.updates)
        # Counted from the moment that the record tells of: publishing it took time as well.
        self._led_from += record.elapsed_s - self.model.record.elapsed_s
        self.model.advance(record)
        self.parent = digest
        self.held, self._surveying.held = [], []
        self._committed_at = self._oldest_held = now.clock
        self._is_round_short = False
        return effects

    def _hold(self, incoming: Incoming, folded: Folded, applied: AppliedUpdates, now: Now) -> list[Effect]:
        """Keep the delivery of a folded update; `applied` are the updates that the model had before."""
        delivery, update, name = incoming.delivery, incoming.update, str(folded.id)
        # Held until committed: if this process dies now, the broker delivers it again.
        if not (self._securing.waiting.held if self._securing else self.held):
            self._oldest_held = now.clock
        if self._securing:
            self._securing.waiting.hold(delivery, now.clock)
        else:
            self.held.append(delivery.tag)
        if update.shape and self.model.secure:
            return self._surveying.masked(update.id.worker, len(self.model.secure.buffer), self.model)
        self.model.note_start(self._elapsed_s(now))
        self.model.sites.note_heard(update.id.worker, elapsed_s=self._elapsed_s(now))
        effects = self._reports.make_room(self.unacked)
        effects += told_of(incoming, self.model, self._missing.before(update, applied))
        sizes = len(delivery.body), 4 * update.vector.tail.size
        staleness, weight = folded.staleness, folded.weight
        return [
            *effects,
            Tell(Applied(staleness, weight, update.examples, *sizes)),
            Log("DEBUG", "update folded", {"update": name, "staleness": staleness, "weight": weight}),
        ]

    def _hold_refresh(self, delivery: Delivery, update: WeightUpdate, now: Now) -> list[Effect]:
        """Keep the delivery of a refresh until a version contains it, which is made at once between two."""
        self._oldest_held = self._oldest_held if self.held else now.clock
        self.held.append(delivery.tag)
        line = info("the sealed sum was encrypted anew", update=str(update.id))
        return [line] if self.model.in_buffer or self._is_synchronous else [line, *self.commit_newer(now)]

    def _turn_down(
        self, delivery: Delivery, refusal: Refusal, update: WeightUpdate | None, now: Now
    ) -> list[Effect]:
        is_missed = refusal.reason not in NOT_MISSED
        if update is None or (update.base_version == self.model.version and is_missed):
            self._is_round_short = self._is_synchronous
        if update is None:
            return self._refuse(delivery, refusal, now)
        if refusal.reason != FOREIGN_SENDER:
            if delivery.redeliveries and update.id in self.model.applied:
                # The commit that contains it was confirmed, but the leader died before its ack arrived.
                line = "the model contains this update already"
                return [info(line, update=str(update.id)), Ack((delivery.tag,))]
            self._missing.note_refused(update.id)
            if self.model.private:
                self.model.private.note_released(update.id.worker, update.released)
        return self._refuse(delivery, refusal, now, update.id)

    def _take_in_report(
        self, delivery: Delivery, found: Evaluation | SiteEvaluation, now: Now
    ) -> list[Effect]:
        elapsed_s = self._elapsed_s(now)
        effects = self._reports.take_in(delivery, found, clock=now.clock, elapsed_s=elapsed_s)
        if isinstance(effects, Refusal):
            return self._refuse(delivery, effects, now)
        return [*effects, *self._reports.make_room(self.unacked)]

    def _refuse(
        self, delivery: Delivery, refused: Refusal, now: Now, update: UpdateId | None = None
    ) -> list[Effect]:
        """Refuse a message, and count that for its verified sender."""
        model, reason, worker = self.model, refused.reason, delivery.user or ""
        headers = {"worker": worker} if worker else {}
        fields = {"reason": reason, "detail": refused.detail, **headers}
        if update:
            fields["update"] = headers["id"] = str(update)
        # What was on its way when the federation ended is nothing to worry about.
        level = "INFO" if reason == FINISHED else "WARNING"
        if reason != FINISHED:
            if not model.contributors.untold_refusals:
                self._refused_from = now.clock
            model.note_refusal(delivery.user, f"{reason}: {refused.detail}")
        if reason == OVER_SHARE and model.strategy.buffer_size == 1:
            model.note_over_share(worker)
        return [
            Log(level, "refused", fields),
            Tell(Rejected(headers.get("id", ""), worker, reason, refused.detail)),
            Reject(delivery, refused, headers),
        ]

    def _elapsed_s(self, now: Now) -> float:
        """Return the seconds in which the federation had a leader."""
        return self.model.record.elapsed_s + now.clock - self._led_from

    def _step_early(self) -> list[Effect]:
        """Step with what is in the buffer; warn when a robust rule can only average what is there."""
        count = self.model.accumulator.totals.count
        self.model.step()
        return told_of_few(self.model.strategy.rule, count)

    def _close_the_federation(self, reached: str, now: Now) -> list[Effect]:
        """End the training; where somebody evaluates, the last model is evaluated before all is over."""
        model, effects = self.model, self._step_early()
        if self._securing:
            # They come again, and are refused.
            effects += self._securing.release(model, "the federation takes no more updates")
        if not self._reports.is_expected:
            model.finish(reached)
            return [*effects, *self.commit_newer(now)]
        self._reports.begin_closing(now.clock)
        model.close(reached)
        line = "no more updates are taken: waiting for the evaluation of the last model"
        return [*effects, info(line, because=reached), *self.commit_newer(now)]

    def _finish_when_evaluated(self, now: Now) -> list[Effect]:
        effects = self._reports.end_closing(now.clock)
        if effects is None:
            return self._reports.look_for_silent(clock=now.clock, elapsed_s=self._elapsed_s(now))
        self.model.finish(self.model.draft.closing)
        return [*effects, *self.commit_newer(now)]

    def _commit(self, now: Now) -> Commit:
        """Return the model as a new version, to be published."""
        model = self.model
        moments = model.next_moments()
        record = model.next_record(
            parent=self.parent,
            moments_checksum=None if moments is None or moments.is_empty else checksum_of(moments),
            elapsed_s=self._elapsed_s(now),
            now=now.unix,
        )
        if record.term != model.record.term:
            require_readable_version(record)
        return Commit(record, moments)
