"""The aggregator's loop: decode, refuse or fold, step, commit, ack. Read this first.

Rule 4 of docs/architecture.md holds here: consuming, publishing and acking share one channel. When it is
lost, nothing is retried: everything held is dropped, and the next turn starts again from the head queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fluffle.broker import Broker, Delivery
from fluffle.errors import ProtocolMismatch, WireError
from fluffle.events import Applied, Committed, Evaluated, Rejected, TookOver
from fluffle.hello import say_hello
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle.reconnecting import work_with_new_connections
from fluffle.record import Evaluation, Hello, ModelVersion
from fluffle.telling import SILENCE, Teller
from fluffle.topology import Topology
from fluffle.update import WeightUpdate
from fluffle.wire import checksum_of, decode_inbound, moments_pieces
from fluffle_aggregator.admission import Policy, Reason, Refusal, evaluation_refusal, foreign_sender
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head, StreamReadings, publish_version, read_head
from fluffle_aggregator.limits import Rates, admit
from fluffle_aggregator.watch import TopologyWatch

log = get_logger(__name__)

POLL_S = 0.5
# Deliveries before this one, after which a message may have been the cause that aggregators died.
SUSPICIOUS_AFTER = 2
# A line about a version names its updates if there are no more; `fluffle trace` knows the others too.
MOST_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """When to commit: after `every` steps, or `after_s` seconds after the last commit if there was a step.

    What waits in a buffer that does not fill is flushed after `buffer_timeout_s`, far below the broker's
    consumer timeout (30 minutes).
    """

    every: int = 1
    after_s: float | None = None
    buffer_timeout_s: float = 60.0

    def is_due(self, steps: int, *, since_commit_s: float) -> bool:
        """Tell whether the steps made since the last commit are to be published now."""
        if steps == 0:
            return False
        return steps >= self.every or (self.after_s is not None and since_commit_s >= self.after_s)

    @property
    def patience_s(self) -> float:
        """How long to wait for a message before looking at the clock again."""
        return min(POLL_S, self.buffer_timeout_s, POLL_S if self.after_s is None else self.after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """All that an aggregator is told when it starts.

    `downlink_codec` is how versions travel to those who read the stream; the head has each as it is.
    `try_out` takes in a message where it does no harm, and says how that ended; empty is well.
    """

    name: str
    topology: Topology
    policy: Policy
    rhythm: Rhythm
    prefetch: int
    downlink_codec: str = "float32"
    first_version: Callable[[], ModelVersion]
    continue_from: Callable[[Head], GlobalModel]
    try_out: Callable[[Layout, bytes], str]
    teller: Teller = SILENCE


def serve(charge: Charge, connect: Callable[[], Broker], stop: threading.Event) -> None:
    """Stand by, lead when it is this process's turn, and return when the federation has finished.

    After a lost connection it starts again from the head; any other error is the caller's.
    """
    readings = StreamReadings()
    work_with_new_connections(
        connect, lambda broker: stand_by_and_lead(charge, broker, readings, stop), stop, charge.teller
    )


def stand_by_and_lead(
    charge: Charge, broker: Broker, readings: StreamReadings, stop: threading.Event
) -> None:
    """Be one aggregator for the life of one connection."""
    broker.declare(charge.topology)
    broker.consume(charge.topology.updates.name, prefetch=charge.prefetch)
    topology = charge.topology
    say_hello(broker, topology.updates_in, federation=topology.federation, name=charge.name)
    log.info("standing by", aggregator=charge.name)
    watch = TopologyWatch(broker, topology)
    delivery = None
    while delivery is None:
        if stop.is_set():
            return
        watch.look_when_due()
        # The broker gives messages to one consumer only: whoever gets the first one leads.
        delivery = broker.next_delivery(POLL_S)
    leader = Leader(charge, broker, readings)
    while True:
        if delivery is not None:
            leader.receive(delivery)
        # Its body is as large as the model: gone before the commit makes another such.
        del delivery
        leader.commit_when_due()
        watch.look_when_due()
        delivery = broker.next_delivery(charge.rhythm.patience_s)
        if stop.is_set():
            log.info("asked to stop: what is held goes back to the queue", updates=leader.held)
            return
        if leader.finished and delivery is None:
            break
    hand_over(charge, broker)


def hand_over(charge: Charge, broker: Broker) -> None:
    """Wake a standby after the end, so that it sees the end too and leaves."""
    topology = charge.topology
    broker.cancel()
    if broker.state(topology.updates.name).consumers:
        say_hello(broker, topology.updates_in, federation=topology.federation, name=charge.name)


class Leader:
    """The one aggregator that folds and commits."""

    def __init__(
        self,
        charge: Charge,
        broker: Broker,
        readings: StreamReadings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take over: read the head, or publish version 0 in a new federation."""
        self._charge = charge
        self._broker = broker
        self._tell = charge.teller
        self._clock = clock
        self._now = now
        self._rates = Rates(charge.policy)
        self._held: list[int] = []
        self._held_evaluation: int | None = None
        self._evaluation_held_from = clock()
        head = read_head(broker, charge.topology, readings, charge.downlink_codec)
        if head is None:
            first = charge.first_version()
            head = Head(first, {}, self._publish(first), first.term - 1)
            log.info("new federation", version=0, parameters=first.layout.size)
        self._parent = head.digest
        self._model = charge.continue_from(head)
        self.finished = head.record.finished
        self._started = self._committed = self._oldest_held = clock()
        log.info("leading", version=head.record.version, term=self._model.term)
        self._tell(TookOver(self._model.term, head.record.version))
        if self.finished:
            log.info(
                "the federation has finished already: to train on, export its model and start another one",
                because=self.finished,
                version=head.record.version,
            )
        elif self._model.has_another_plan:
            # Until the workers read of it, they train and send what this leader would refuse.
            log.warning(
                "the plan is another than before: publishing the model with it",
                before=head.record.strategy,
                now=str(self._model.strategy),
            )
            self._commit()

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
            self._refuse(delivery, over, _sender(delivery))
            return
        if delivery.redeliveries >= SUSPICIOUS_AFTER:
            log.warning("trying a message that was there when aggregators died", times=delivery.redeliveries)
            if end := self._charge.try_out(self._model.record.layout, delivery.body):
                detail = f"after {delivery.redeliveries} deliveries, a process that tried this message {end}"
                self._refuse(delivery, Refusal(Reason.CRASHES, detail), {})
                return
        try:
            message = decode_inbound(delivery.body, most_parameters=self._model.record.layout.size)
        except WireError as error:
            reason = Reason.OTHER_PROTOCOL if isinstance(error, ProtocolMismatch) else Reason.UNREADABLE
            self._refuse(delivery, Refusal(reason, str(error)), _sender(delivery))
            return
        match message:
            case WeightUpdate():
                self._receive_update(delivery, message)
            case Evaluation():
                self._receive_evaluation(delivery, message)
            case Hello():
                log.debug("somebody said hello", name=message.name, user=delivery.user)
                self._broker.ack([delivery.tag])

    def commit_when_due(self) -> None:
        """Commit if there is reason to; sets `finished` when the goal is reached."""
        if self.finished:
            return
        model, rhythm = self._model, self._charge.rhythm
        self.finished = model.goal.reached(
            version=model.version,
            updates=model.updates,
            elapsed_s=self.elapsed_s,
            target_held=model.target_held,
        )
        if self.finished:
            self._close_the_federation()
            return
        if (
            self._held_evaluation is not None
            and self._clock() - self._evaluation_held_from >= rhythm.buffer_timeout_s
        ):
            # Nobody trains. It is in memory, and in the next record; held longer, it would cost the channel.
            self._broker.ack([self._held_evaluation])
            self._held_evaluation = None
        if self._held and self._clock() - self._oldest_held >= rhythm.buffer_timeout_s:
            log.info("flushing what has waited long enough", updates=len(self._held))
            model.step()
            self._commit()
        # Never with something in the buffer: the record would name it as applied, and its vector lack it.
        elif not model.in_buffer and rhythm.is_due(
            model.steps, since_commit_s=self._clock() - self._committed
        ):
            self._commit()

    def _receive_update(self, delivery: Delivery, update: WeightUpdate) -> None:
        if foreign := foreign_sender(update.id.worker, delivery, self._charge.topology.updates_in):
            self._refuse(delivery, foreign, {"id": str(update.id)})
            return
        if delivery.redeliveries and update.id in self._model.applied:
            # The commit that contains it was confirmed, but the leader died before its ack arrived.
            log.info("update is in the model already", update=str(update.id))
            self._broker.ack([delivery.tag])
            return
        admitted = admit(update, self._model, self._charge.policy, finished=self.finished)
        if isinstance(admitted, Refusal):
            self._refuse(delivery, admitted, {"id": str(update.id), "worker": update.id.worker})
            return
        if admitted.norm_before is not None:
            log.warning("clipped", update=str(update.id), norm=admitted.norm_before, to=admitted.norm)
        if not self._held:
            self._oldest_held = self._clock()
        folded = self._model.fold(
            admitted.update, now=self._now(), published_at=delivery.published_at, norm=admitted.norm
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
            evaluation.evaluator, delivery, self._charge.topology.evaluations_in
        ) or evaluation_refusal(evaluation, self._model)
        if refused:
            self._refuse(delivery, refused, {})
            return
        if self.finished or not self._model.note_evaluation(evaluation):
            self._broker.ack([delivery.tag])
            return
        self._tell(Evaluated(evaluation.evaluator, evaluation.version, evaluation.metrics))
        log.info(
            "evaluated",
            version=evaluation.version,
            held=self._model.target_held,
            metrics={name: round(value, 4) for name, value in evaluation.metrics.items()},
        )
        # Only the newest one waits for the record that has it, so that they never fill the prefetch window.
        if self._held_evaluation is not None:
            self._broker.ack([self._held_evaluation])
        self._held_evaluation, self._evaluation_held_from = delivery.tag, self._clock()

    def _refuse(self, delivery: Delivery, refused: Refusal, headers: dict[str, str]) -> None:
        """Move a message to F.rejected with the reason, and count it."""
        whose = {"update" if name == "id" else name: value for name, value in headers.items()}
        log.warning("refused", reason=str(refused.reason), detail=refused.detail, **whose)
        self._model.note_refusal(headers.get("worker"))
        told = headers.get("id", ""), headers.get("worker", delivery.user or "")
        self._tell(Rejected(*told, str(refused.reason), refused.detail))
        self._broker.publish(
            self._charge.topology.rejected_in.name,
            "",
            delivery.body,
            headers
            | {
                "reason": str(refused.reason),
                "detail": refused.detail[:1000],
                "user": delivery.user or "",
                "from": self._charge.topology.updates.name,
                "through": delivery.exchange,
                "published_at": f"{delivery.published_at:.3f}",
                "at": f"{self._now():.3f}",
            },
        )
        self._broker.ack([delivery.tag])

    def _close_the_federation(self) -> None:
        self._model.close()
        self._commit()
        log.info("the federation has finished", because=self.finished, version=self._model.version)

    def _commit(self) -> None:
        """Publish the model as a new version, and then ack what it contains."""
        model = self._model
        checksum = None
        moments = model.next_moments()
        if moments:
            checksum = checksum_of(moments)
            # To the head alone, before the record that names it: the workers have no use for it.
            to_head = self._charge.topology.head_in.name
            self._broker.publish(to_head, "", moments_pieces(moments), {"kind": "moments"})
        record = model.next_record(
            parent=self._parent,
            moments_checksum=checksum if model.moments else None,
            elapsed_s=self.elapsed_s,
            now=self._now(),
            finished=self.finished,
        )
        began = self._clock()
        self._parent = self._publish(record)
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

    def _publish(self, record: ModelVersion) -> str:
        """Publish a version's record, and return its digest."""
        return publish_version(self._broker, self._charge.topology, record, self._charge.downlink_codec)


def _sender(delivery: Delivery) -> dict[str, str]:
    """Return the headers that name a sender whom RabbitMQ has verified."""
    return {"worker": delivery.user} if delivery.user else {}
