"""The worker's loop: newest model, train, spool, publish. Read this first.

Training runs in this thread; the broker's connection has a thread of its own, which keeps its heartbeat up
however long an epoch takes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace

import numpy as np
import tenacity

from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.compression import compress, leaves_out
from fluffle.errors import ConnectionLost, MessageTooLarge, QueueFull, TopologyMissing
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.events import Progressed, Published, Started, Trained
from fluffle.in_flight import most_in_flight
from fluffle.logs import get_logger
from fluffle.message_size import require_update_fits
from fluffle.model import Vector
from fluffle.model_stream import newest_version
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone, wait_before
from fluffle.record import ModelVersion, Rank
from fluffle.stopping import StopRequested
from fluffle.task import Progress, Task
from fluffle.topology import MAX_MESSAGE_BYTES, Topology
from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate
from fluffle_worker.feedback import compress_with_feedback
from fluffle_worker.round import TrainedUpdate, train_round
from fluffle_worker.site_state import SiteState
from fluffle_worker.spool import NoRoomForResidual, Spool

log = get_logger(__name__)

# How often listeners are told how far a round is.
TELL_EVERY_S = 1.0
# How long a worker that is ahead waits for a newer version, at the least, in rounds, and at the most.
FIRST_PATIENCE_S, ROUNDS_OF_PATIENCE, LONGEST_PATIENCE_S = 5.0, 3.0, 600.0
# The longest wait after a round whose result may not be sent.
LONGEST_WAIT_S = 60.0

Connect = Callable[[], Broker]
ShowRound = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """What a worker did in one life, and why it ended.

    `ended_by` is the reason for which the federation has finished, such as "accuracy>=0.9 held"; empty when
    the worker was asked to stop. `version` is the newest version that it trained from, None without a round.
    `refused` counts its updates that the aggregator refused, `waiting` those that are still in its spool.
    """

    ended_by: str
    rounds: int
    version: int | None
    refused: int
    waiting: int


class Worker:
    """One life of a worker. What it has trained is in its spool, and outlives it."""

    def __init__(
        self,
        *,
        name: str,
        task: Task,
        topology: Topology,
        spool: Spool,
        seed: int,
        delay_s: float,
        show_round: ShowRound,
        stop: threading.Event,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        event_sink: EventSink = NULL_SINK,
    ) -> None:
        """Make a worker of a task whose data is prepared already; `seed` orders its minibatches.

        It does not train what would be too large a message.
        """
        self.name = name
        self._task = CheckedTask(task, stop)
        self._model = self._task.model()
        self._site = SiteState(spool.folder, self._task, self._model.local)
        self._topology = topology
        self._spool = spool
        self._seed = seed
        self._delay_s = delay_s
        self._show_round = show_round
        self._stop = stop
        self._max_message_bytes = max_message_bytes
        self._tell = event_sink
        self._rounds = self._unusable_rounds = 0
        # The updates of this process that the newest version does not contain yet.
        self._under_way: list[UpdateId] = []
        self._patience_s = FIRST_PATIENCE_S
        # How many of this worker's updates were refused, as the newest version says.
        self._refused = 0
        self._last: ModelVersion | None = None
        self._ended_by = ""

    def work(
        self, connect: Connect, *, try_to_connect: Connect | None = None, patience_s: float = math.inf
    ) -> WorkerResult:
        """Train round after round until the federation has finished, or until asked to stop.

        `connect` waits for the broker. With `try_to_connect`, which does not, the worker trains on from the
        newest version that it has while the broker cannot be reached. `patience_s` is how long connections
        may end within a second, one after the other. What was not confirmed is sent again under its own id,
        and stays in the spool whatever ends this. Raises LayoutError when the federation's model is another
        than the task's, and MessageTooLarge when no update of it could be sent.
        """

        def connect_or_train() -> Broker:
            return (try_to_connect and self._train_until_connected(try_to_connect)) or connect()

        if self._spool.waiting:
            log.info("updates of an earlier run wait in the spool", updates=self._spool.waiting)
        try:
            with suppress(StopRequested):
                work = until_federation_is_gone(self._work_on)
                run_with_reconnect(connect_or_train, work, self._stop, self._tell, patience_s=patience_s)
            if self._stop.is_set() and not self._ended_by:
                log.info("asked to stop", rounds=self._rounds)
        finally:
            if self._spool.waiting:
                log.warning(
                    "leaving with updates in the spool: start this worker again, and they are sent",
                    updates=self._spool.waiting,
                    spool=str(self._spool.folder),
                )
        return WorkerResult(
            ended_by=self._ended_by,
            rounds=self._rounds,
            version=self._last.version if self._last else None,
            refused=self._refused,
            waiting=self._spool.waiting,
        )

    def _work_on(self, broker: Broker) -> None:
        while version := self._newest(broker):
            self._begin_anew_if_the_federation_was(version)
            if version.is_over:
                break
            self._warn_of_refusals(version)
            if not self._spool.waiting:
                self._train(version)
            self._send_what_waits(broker)
        if version:
            self._warn_of_refusals(version)
            self._ended_by = version.finished or version.closing
            log.info("the federation has finished", because=self._ended_by, rounds=self._rounds)
            if late := self._spool.clear():
                log.info("dropped from the spool what came too late to count", updates=late)

    def _begin_anew_if_the_federation_was(self, version: ModelVersion) -> None:
        """Drop what was learnt for a federation that is no more, once another one has taken its place."""
        if not self._site.belongs_to(version):
            dropped = self._spool.begin_anew()
            self._site.begin_anew()
            self._under_way, self._refused = [], 0
            say = log.warning if dropped else log.info
            say(
                "the federation was begun anew: what this worker had for the one before can never count, and "
                "it goes on from the new one's newest version",
                version=version.version,
                dropped_updates=dropped,
            )
        self._site.remember(version)

    def _warn_of_refusals(self, version: ModelVersion) -> None:
        """Warn when updates of this worker were refused: the first time, and then at powers of two."""
        given = version.contributors.get(self.name)
        if given is None:
            return
        if given.rejected.bit_length() > self._refused.bit_length():
            log.warning(
                "the aggregator refuses updates of this worker", refused=given.rejected, last=given.refusal
            )
        self._refused = given.rejected

    def _train_until_connected(self, try_to_connect: Connect) -> Broker | None:
        """Train on until a connection is there; None when there is nothing to train from, or no use in it."""
        attempts, next_attempt = 0, time.monotonic()
        # In synchronous rounds a second update for the same version would be refused.
        while self._last and not self._last.plan.one_update_per_version:
            if time.monotonic() >= next_attempt:
                try:
                    return try_to_connect()
                except TopologyMissing:
                    return None
                except ConnectionLost as error:
                    if self._stop.is_set():
                        raise
                    attempts += 1
                    next_attempt = time.monotonic() + wait_before(attempts)
                    waiting = self._spool.waiting
                    log.warning("training on without the broker", because=str(error), waiting=waiting)
            if not self._is_ahead(self._last):
                self._train(self._last)
                if self._is_ahead(self._last):
                    log.info(
                        "enough is under way: training goes on from a newer version",
                        under_way=len(self._under_way),
                    )
            elif self._stop.wait(max(0.0, next_attempt - time.monotonic())):
                raise StopRequested
        return None

    def _newest(self, broker: Broker) -> ModelVersion | None:
        """Return the newest version; in synchronous rounds, wait for one that has not been trained from.

        A version of a lower term than one seen before comes from an aggregator that has lost the lead.
        """
        last = self._last
        is_synchronous = bool(last and last.plan.one_update_per_version and not self._spool.waiting)
        is_ahead = bool(last and self._is_ahead(last)) and not is_synchronous
        waits = is_synchronous or is_ahead
        log.debug("waiting for a new version" if waits else "fetching the newest version")
        if last is None:
            return newest_version(broker, self._topology, stop=self._stop)
        newest = newest_version(
            broker,
            self._topology,
            stop=self._stop,
            newer_than=last.rank if waits else Rank(last.term, -1),
            timeout_s=self._patience_s if is_ahead else math.inf,
        )
        if newest is None and not self._stop.is_set():
            # Others have left, it may be, and without another update the version never fills.
            log.info(
                "no newer version comes: training on from the same one", waited_s=round(self._patience_s)
            )
            self._patience_s = min(LONGEST_PATIENCE_S, 2 * self._patience_s)
            return last
        if newest:
            self._under_way = [one for one in self._under_way if not newest.applied.is_past(one)]
            if newest.rank > last.rank:
                self._patience_s = FIRST_PATIENCE_S
        return newest

    def _is_ahead(self, newest: ModelVersion) -> bool:
        """Tell whether so many updates are under way that one more would only repeat them."""
        return len(self._under_way) >= most_in_flight(newest, self.name)

    def _train(self, version: ModelVersion) -> None:
        """Train one round from a version, as its plan says, and put what was learnt into the spool."""
        version.layout.require(self._model.layout)
        require_update_fits(version.layout, version.plan.codec, self._max_message_bytes)
        self._last = version
        self._spool.compare(version.applied)
        update_id = self._spool.next_id
        log.debug("round started", update=str(update_id), version=version.version)
        self._tell(Started(str(update_id), version.version))
        keep_optimizer = version.plan.keep_optimizer
        self._site.start_round(keep_optimizer=keep_optimizer)
        with self._show_round(f"version {version.version}, round {update_id.sequence}") as show:
            trained = train_round(
                self._task,
                version,
                self._site.local,
                update_id=update_id,
                seed=int(np.random.SeedSequence([self._seed, update_id.sequence]).generate_state(1)[0]),
                progress=self._progress(update_id, show),
                idle=self._idle,
            )
        self._rounds += 1
        update = trained.update
        loss = update.metrics.get("loss")
        self._tell(Trained(str(update_id), version.version, update.train_s, loss))
        log.info(
            "round trained",
            update=str(update_id),
            version=version.version,
            seconds=round(update.train_s, 2),
            metrics={name: round(value, 4) for name, value in update.metrics.items()},
        )
        if trained.unusable:
            self._give_up_round(trained)
            return
        self._unusable_rounds = 0
        self._site.end_round(trained.local, keep_optimizer=keep_optimizer)
        self._under_way.append(update_id)
        self._patience_s = max(self._patience_s, ROUNDS_OF_PATIENCE * update.train_s)
        self._keep(update, trained.vector, version.applied)

    def _give_up_round(self, trained: TrainedUpdate) -> None:
        """Warn, and wait the longer, the more rounds in a row gave nothing that may be sent."""
        self._site.forget_round()
        wait_s = min(LONGEST_WAIT_S, 2.0**self._unusable_rounds)
        self._unusable_rounds += 1
        log.warning(
            "this round's update is not sent",
            because=trained.unusable,
            update=str(trained.update.id),
            metrics=dict(trained.update.metrics),
            rounds_in_a_row=self._unusable_rounds,
            wait_s=wait_s,
        )
        if self._stop.wait(wait_s):
            raise StopRequested

    def _progress(self, update_id: UpdateId, show: Progress) -> Progress:
        """Return what a task calls after each minibatch; it ends the round when asked to stop."""
        told_at = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told_at
            if self._stop.is_set():
                raise StopRequested
            show(done, total)
            if time.monotonic() - told_at >= TELL_EVERY_S:
                told_at = time.monotonic()
                self._tell(Progressed(str(update_id), done, total))

        return progress

    def _idle(self) -> None:
        if not self._delay_s:
            return
        log.debug("idling", seconds=self._delay_s)
        if self._stop.wait(self._delay_s):
            raise StopRequested

    def _keep(self, update: WeightUpdate, vector: Vector, applied: AppliedUpdates) -> None:
        """Compress what was learnt, and put it into the spool; `applied` is of the newest version."""
        random = np.random.default_rng([self._seed, update.id.sequence, 1])
        if update.sends == "delta" and (leaves_out(update.codec) or self._spool.has_residual):
            try:
                made = compress_with_feedback(self._spool, applied, update.codec, vector, random)
                self._spool.add(replace(update, vector=made.vector, absorbs=made.absorbs), made.residual)
            except NoRoomForResidual as error:
                log.warning("the disk takes nothing: what this update leaves out is lost", because=str(error))
            else:
                return
        self._spool.add(replace(update, vector=compress(update.codec, vector, random)))

    def _send_what_waits(self, broker: Broker) -> None:
        while waiting := self._spool.oldest():
            update_id, body = waiting
            self._publish(broker, update_id, body)
            self._spool.confirm()
            self._tell(Published(str(update_id), len(body)))
            log.info("update published", update=str(update_id), size_bytes=len(body))
            if self._stop.is_set():
                raise StopRequested

    def _publish(self, broker: Broker, update_id: UpdateId, body: bytes) -> None:
        """Send an update until the broker has it; a full queue is waited for."""
        headers = {"kind": "update", "id": str(update_id), "worker": self.name, "at": f"{time.time():.3f}"}
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(QueueFull),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
            stop=tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=lambda _: log.warning("the updates queue is full; waiting", update=str(update_id)),
            reraise=True,
        )
        try:
            patiently(broker.publish, self._topology.updates_in.name, "", body, headers)
        except QueueFull as error:
            raise StopRequested from error
        except MessageTooLarge as error:
            if self._last:
                # RabbitMQ takes less than was thought: now it is known which codec would do.
                require_update_fits(self._model.layout, self._last.plan.codec, error.limit_bytes)
            raise
