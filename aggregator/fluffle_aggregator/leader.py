"""The one aggregator that folds and commits: what it does with each message, and when it publishes.

Rule 4 of docs/architecture.md holds here: consuming, publishing and acking share one channel.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fluffle.broker import Broker, Delivery
from fluffle.errors import ProtocolMismatch, WireError
from fluffle.events import Applied, Committed, Evaluated, Rejected, TookOver
from fluffle.logs import get_logger
from fluffle.record import Evaluation, Hello, ModelVersion, not_finite
from fluffle.update import WeightUpdate
from fluffle.wire import checksum_of, decode_inbound, require_readable_version
from fluffle_aggregator.admission import Reason, Refusal, evaluation_refusal, foreign_sender
from fluffle_aggregator.beginning import begin_federation
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth, read_head
from fluffle_aggregator.head_keeper import HeadKeeper
from fluffle_aggregator.limits import Rates, admit, counts_share_over_window
from fluffle_aggregator.missing import MissingUpdates, in_words

log = get_logger(__name__)

# Deliveries before this one, after which a message may have been the cause that aggregators died.
SUSPICIOUS_AFTER = 2
# A line about a version names its updates if there are no more; `fluffle trace` knows the others too.
MOST_NAMED = 8
# How long a worker that was refused waits to be told, while no version is made for other reasons.
REFUSALS_TOLD_AFTER_S = 10.0
EVALUATION_PATIENCE_S = 30.0


class Leader:
    """The one aggregator that folds and commits."""

    def __init__(
        self,
        config: AggregatorConfig,
        broker: Broker,
        stream_health: StreamHealth,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take over: read the head, or publish version 0 in a new federation."""
        self._config = config
        self._broker = broker
        self._tell = config.event_sink
        self._clock = clock
        self._now = now
        self._rates = Rates(config.policy)
        self._missing = MissingUpdates()
        self._held: list[int] = []
        self._held_evaluation: int | None = None
        # Where nobody evaluates, the closing version is not waited for.
        self._has_evaluator = False
        self._closing_from = clock()
        self._refused_from = clock()
        self._evaluation_held_from = clock()
        head = read_head(broker, config.topology, stream_health, config.downlink_codec)
        if head is None:
            head = begin_federation(config, broker, stream_health)
        stream_health.note_version()
        self._parent = head.digest
        self._head = HeadKeeper(
            broker, config.topology, config.downlink_codec, messages=head.messages, clock=clock
        )
        self._model = config.continue_from(head)
        self.finished = head.record.finished
        self._has_evaluator = head.record.evaluation is not None
        self._started = self._committed = self._oldest_held = clock()
        if self.finished:
            # It came to see the end and to leave: nobody takes that for a takeover.
            log.info(
                "the federation has finished already: to train on, export its model and start another one",
                because=self.finished,
                version=head.record.version,
            )
            return
        log.info("leading", version=head.record.version, term=self._model.term)
        self._tell(TookOver(self._model.term, head.record.version))
        if self._model.has_another_plan and not self._model.closing:
            # Until the workers read of it, they train and send what this leader would refuse.
            log.warning(
                "the plan is another than before: publishing the model with it",
                before=head.record.strategy,
                now=str(self._model.strategy),
            )
            self._commit()

    @property
    def record(self) -> ModelVersion:
        """The newest version, as it was published."""
        return self._model.record

    @property
    def held(self) -> int:
        """The number of updates that are folded but not committed yet."""
        return len(self._held)

    @property
    def elapsed_s(self) -> float:
        """The seconds in which the federation had a leader."""
        return self._model.record.elapsed_s + self._clock() - self._started

    def receive(self, delivery: Delivery) -> None:
        """Take in one message: fold it, note it, or refuse it."""
        # Before anything is read of it, so that a flood is cheap.
        if over := self._rates.refusal(delivery, now=self._clock()):
            self._refuse(delivery, over, {})
            return
        if delivery.redeliveries >= SUSPICIOUS_AFTER:
            log.warning("trying a message that was there when aggregators died", times=delivery.redeliveries)
            if end := self._config.try_out(self._model.record.layout, delivery.body):
                detail = f"after {delivery.redeliveries} deliveries, a process that tried this message {end}"
                self._refuse(delivery, Refusal(Reason.CRASHES, detail), {})
                return
        try:
            message = decode_inbound(delivery.body, most_parameters=self._model.record.layout.size)
        except WireError as error:
            reason = Reason.OTHER_PROTOCOL if isinstance(error, ProtocolMismatch) else Reason.UNREADABLE
            self._refuse(delivery, Refusal(reason, str(error)), {})
            return
        match message:
            case WeightUpdate():
                self._receive_update(delivery, message)
            case Evaluation():
                self._receive_evaluation(delivery, message)
            case Hello():
                log.debug("somebody said hello", name=message.name, user=delivery.user)
                self._has_evaluator |= delivery.exchange == self._config.topology.evaluations_in.name
                self._broker.ack([delivery.tag])

    def commit_when_due(self) -> None:
        """Commit if there is reason to; sets `finished` when the goal is reached."""
        if self.finished:
            return
        model, commit_schedule = self._model, self._config.commit_schedule
        if model.closing:
            self._finish_when_evaluated()
            return
        reached = model.goal.reached(
            version=model.version,
            updates=model.updates,
            training_s=0.0 if model.started_s is None else self.elapsed_s - model.started_s,
            target_held=model.target_held,
            not_finite_held=model.not_finite_held,
        )
        if reached:
            self._close_the_federation(reached)
            return
        if (
            self._held_evaluation is not None
            and self._clock() - self._evaluation_held_from >= commit_schedule.buffer_timeout_s
        ):
            # Nobody trains. It is in memory, and in the next record; held longer, it would cost the channel.
            self._broker.ack([self._held_evaluation])
            self._held_evaluation = None
        if self._held and self._clock() - self._oldest_held >= commit_schedule.buffer_timeout_s:
            log.info("flushing what has waited long enough", updates=len(self._held))
            model.step()
            self._commit()
        # Never with something in the buffer: the record would name it as applied, and its vector lack it.
        elif not model.in_buffer and commit_schedule.is_due(
            model.steps, since_commit_s=self._clock() - self._committed
        ):
            self._commit()
        elif model.untold_refusals and not self._held and self._may_tell_refusals():
            model.make_newer()
            self._commit()

    def look_after_head(self) -> None:
        """See now and then that the head queue holds what was published there, and put back what is gone."""
        model = self._model
        if not self._head.is_whole_when_due(model.record, model.moments, self._parent):
            # Steps were made since the newest version, so that it cannot be published again.
            model.step()
            self._commit()

    def _receive_update(self, delivery: Delivery, update: WeightUpdate) -> None:
        if foreign := foreign_sender(update.id.worker, delivery, self._config.topology.updates_in):
            self._refuse(delivery, foreign, {"id": str(update.id)})
            return
        if delivery.redeliveries and update.id in self._model.applied:
            # The commit that contains it was confirmed, but the leader died before its ack arrived.
            log.info("update is in the model already", update=str(update.id))
            self._broker.ack([delivery.tag])
            return
        over = self.finished or self._model.closing
        admitted = admit(update, self._model, self._config.policy, finished=over)
        if isinstance(admitted, Refusal):
            self._missing.note_refused(update.id)
            self._refuse(delivery, admitted, {"id": str(update.id)})
            return
        if gone := self._missing.before(update, self._model.applied):
            log.warning(
                "updates before this one never came",
                update=str(update.id),
                missing=in_words(gone),
                because="another leader refused them (`fluffle rejected list`), the worker dropped them from "
                "a full spool, or a policy or somebody took them from the queue (`fluffle status`)",
            )
        if admitted.norm_before is not None:
            log.warning("clipped", update=str(update.id), norm=admitted.norm_before, to=admitted.norm)
        if not self._held:
            self._oldest_held = self._clock()
        if self._model.started_s is None:
            self._model.started_s = self.elapsed_s
        folded = self._model.fold(
            admitted.update,
            now=self._now(),
            published_at=delivery.published_at,
            norm=admitted.norm,
            is_share_limited=self._is_share_counted,
        )
        # Held until committed: if this process dies now, the broker delivers them again.
        self._held.append(delivery.tag)
        self._tell(
            Applied(
                str(update.id),
                update.base_version,
                folded.staleness,
                folded.weight,
                update.examples,
                len(delivery.body),
                4 * update.vector.size,
            )
        )
        log.debug("update folded", update=str(update.id), staleness=folded.staleness, weight=folded.weight)

    def _receive_evaluation(self, delivery: Delivery, evaluation: Evaluation) -> None:
        refused = foreign_sender(
            evaluation.evaluator, delivery, self._config.topology.evaluations_in
        ) or evaluation_refusal(evaluation, self._model)
        if refused:
            self._refuse(delivery, refused, {})
            return
        if self.finished or not self._model.note_evaluation(evaluation):
            self._broker.ack([delivery.tag])
            return
        self._tell(Evaluated(evaluation.evaluator, evaluation.version, evaluation.metrics))
        self._has_evaluator = True
        metrics = {name: round(value, 4) for name, value in evaluation.metrics.items()}
        log.info("evaluated", version=evaluation.version, held=self._model.target_held, metrics=metrics)
        if bad := not_finite(evaluation.metrics):
            log.warning(
                "an evaluation is not finite, and counts as a miss",
                version=evaluation.version,
                metrics=", ".join(bad),
                in_a_row=self._model.not_finite_held,
            )
        # Only the newest one waits for the record that has it, so that they never fill the prefetch window.
        if self._held_evaluation is not None:
            self._broker.ack([self._held_evaluation])
        self._held_evaluation, self._evaluation_held_from = delivery.tag, self._clock()

    def _refuse(self, delivery: Delivery, refused: Refusal, headers: dict[str, str]) -> None:
        """Move a message to F.rejected with the reason, and count it for its verified sender."""
        if delivery.user:
            headers = {"worker": delivery.user, **headers}
        whose = {"update" if name == "id" else name: value for name, value in headers.items()}
        # What was on its way when the federation ended is nothing to worry about.
        say = log.info if refused.reason is Reason.FINISHED else log.warning
        say("refused", reason=str(refused.reason), detail=refused.detail, **whose)
        if refused.reason is not Reason.FINISHED:
            if not self._model.untold_refusals:
                self._refused_from = self._clock()
            self._model.note_refusal(delivery.user, f"{refused.reason}: {refused.detail}")
        if refused.reason is Reason.OVER_SHARE and self._is_share_counted:
            self._model.note_over_share(headers["worker"])
        told = headers.get("id", ""), headers.get("worker", "")
        self._tell(Rejected(*told, str(refused.reason), refused.detail))
        self._broker.publish(
            self._config.topology.rejected_in.name,
            "",
            delivery.body,
            headers
            | {
                "reason": str(refused.reason),
                "detail": refused.detail[:1000],
                "user": delivery.user or "",
                "from": self._config.topology.updates.name,
                "through": delivery.exchange,
                "published_at": f"{delivery.published_at:.3f}",
                "at": f"{self._now():.3f}",
            },
        )
        self._broker.ack([delivery.tag])

    @property
    def _is_share_counted(self) -> bool:
        policy, strategy = self._config.policy, self._model.strategy
        return policy.max_share is not None and counts_share_over_window(strategy)

    def _may_tell_refusals(self) -> bool:
        """Tell whether a version may be made only to tell workers that they were refused.

        In synchronous rounds it would end the round of everybody who trains.
        """
        patience_s = REFUSALS_TOLD_AFTER_S
        if self._model.strategy.one_update_per_version:
            patience_s = self._config.commit_schedule.buffer_timeout_s
        return self._clock() - self._refused_from >= patience_s

    def _close_the_federation(self, reached: str) -> None:
        """End the training; where somebody evaluates, the last model is evaluated before all is over."""
        model = self._model
        model.step()
        is_evaluated = model.evaluation is not None and model.evaluation.version == model.version
        if is_evaluated or not self._has_evaluator:
            self._finish(reached)
            return
        log.info("no more updates are taken: waiting for the evaluation of the last model", because=reached)
        model.closing, self._closing_from = reached, self._clock()
        model.make_newer()
        self._commit()

    def _finish_when_evaluated(self) -> None:
        model = self._model
        is_evaluated = model.evaluation is not None and model.evaluation.version >= model.version
        waited_s = self._clock() - self._closing_from
        if not is_evaluated and waited_s < self._evaluation_patience_s:
            return
        if not is_evaluated:
            log.warning("the last model is not evaluated: no evaluator reports", waited_s=round(waited_s))
        self._finish(model.closing)

    @property
    def _evaluation_patience_s(self) -> float:
        """How long an evaluation may take, after one that may just have begun."""
        evaluation = self._model.evaluation
        return EVALUATION_PATIENCE_S + 3 * (evaluation.evaluate_s if evaluation else 0.0)

    def _finish(self, reached: str) -> None:
        self.finished = reached
        self._model.make_newer()
        self._commit()
        log.info("the federation has finished", because=self.finished, version=self._model.version)

    def _commit(self) -> None:
        """Publish the model as a new version, and then ack what it contains."""
        model = self._model
        checksum = None
        moments = model.next_moments()
        if moments:
            checksum = checksum_of(moments)
            self._head.publish_moments(moments)
        record = model.next_record(
            parent=self._parent,
            moments_checksum=checksum if model.moments else None,
            elapsed_s=self.elapsed_s,
            now=self._now(),
            finished=self.finished,
        )
        if record.term != model.record.term:
            require_readable_version(record)
        began = self._clock()
        self._parent = self._head.publish(record)
        self._tell(
            Committed(
                record.version,
                record.term,
                record.updates,
                record.rejected,
                record.target_held,
                record.best.version if record.best else -1,
                record.elapsed_s,
                self._clock() - began,
                record.finished,
                record.best_by,
                record.started_s,
                record.closing,
            )
        )
        held = self._held if self._held_evaluation is None else [*self._held, self._held_evaluation]
        self._broker.ack(held)
        few = record.folded if len(record.folded) <= MOST_NAMED else ()
        log.info(
            "version committed",
            version=record.version,
            term=record.term,
            updates=len(record.folded),
            applied=[str(one.id) for one in few],
            mean_staleness=round(sum(one.staleness for one in record.folded) / max(1, len(record.folded)), 2),
        )
        # On from the moment that the record tells of: publishing it took time as well.
        self._started += record.elapsed_s - model.record.elapsed_s
        model.advance(record)
        self._held, self._held_evaluation = [], None
        self._committed = self._oldest_held = self._clock()
