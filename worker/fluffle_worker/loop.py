"""The worker's loop: read the newest version, train, put the update into the spool, publish. Read this first.

Training runs in this thread; the broker's connection has a thread of its own, which keeps its heartbeat up
however long an epoch takes.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.errors import ConnectionLost, TopologyMissing
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.logs import get_logger
from fluffle.message_size import require_planned_update_fits
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone, wait_before
from fluffle.record import ModelVersion, Rank
from fluffle.stopping import StopRequested
from fluffle.task import Site, Task
from fluffle.topology import MAX_MESSAGE_BYTES, Topology
from fluffle_worker.base_version import FIRST_PATIENCE_S, BaseVersion
from fluffle_worker.feedback import add_to_spool
from fluffle_worker.insisting import Insistence
from fluffle_worker.masking import Keys, SecureSite
from fluffle_worker.pace.pace import Pace
from fluffle_worker.pace.share import TrainedPart, TrainShare
from fluffle_worker.private_turn import PrivateTurn
from fluffle_worker.released import ReleasedUpdates
from fluffle_worker.round import ShowRound, Trainer, show_nothing
from fluffle_worker.round_watch import RoundWatcher
from fluffle_worker.sealed_versions import SharedKey
from fluffle_worker.sealing import SealedSite
from fluffle_worker.sending import send_all
from fluffle_worker.site_state import SiteState
from fluffle_worker.spool import Spool
from fluffle_worker.survey import SurveyAtSite
from fluffle_worker.validation import SiteValidation

log = get_logger(__name__)

Connect = Callable[[], Broker]


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """What a worker did, and why it ended.

    `ended_by` is the reason for which the federation finished, such as "accuracy>=0.9 held", or for which
    this worker left it before; empty when it was asked to stop. `version` is the newest version that it
    trained from, None without a round.
    `aborted` counts the rounds that it ended early, since their updates would have been refused. `refused`
    counts its updates that the aggregator refused, `waiting` the unsent ones in its spool.
    """

    ended_by: str
    rounds: int
    aborted: int
    version: int | None
    refused: int
    waiting: int


@dataclass(kw_only=True, eq=False)
class Worker:
    """One run of a worker, with a task whose data is prepared; unsent updates survive it in the spool.

    `site` is the one that the data was prepared for: with the result of a survey it is prepared once more.
    `examples` is the number at its site, 0 if unknown. `seed` orders the minibatches, `delay_s` is idle time
    in each round, and `step_delay_s` after each minibatch. With a `train_share` below 1, the worker trains
    and sends the last layers alone: those that have at most this share of the trained parameters, or with
    "auto" those that fit. `memory_mib` is what the process may take for larger minibatches and parts, by
    default half of what is free. The worker does not train when the update would exceed `max_message_bytes`.
    It waits `first_patience_s` for a newer version, or longer, when it has many updates in flight, before it
    trains again from the same version. `note` is called with each version that it reads.

    With `keys` it takes part in secure aggregation, and in nothing else. With a `sealed_key` it takes part in
    a sealed federation, and in nothing else; tensors that match one of the patterns `sealed_only` must be
    sealed, all of them without patterns. With an `insistence` it takes part in nothing that is less private.
    """

    name: str
    task: Task
    topology: Topology
    spool: Spool
    site: Site = field(default_factory=Site)
    examples: int = 0
    seed: int = 0
    delay_s: float = 0.0
    step_delay_s: float = 0.0
    train_share: TrainShare = 1.0
    memory_mib: int | None = None
    show_round: ShowRound = show_nothing
    stop: threading.Event = field(default_factory=threading.Event)
    max_message_bytes: int = MAX_MESSAGE_BYTES
    event_sink: EventSink = NULL_SINK
    first_patience_s: float = FIRST_PATIENCE_S
    note: Callable[[ModelVersion], None] | None = None
    keys: Keys | None = None
    sealed_key: SharedKey | None = None
    sealed_only: tuple[str, ...] = ()
    insistence: Insistence | None = None

    def __post_init__(self) -> None:
        """Build the model, and read what an earlier run left at this site."""
        task = CheckedTask(self.task, self.stop)
        model = task.model()
        self._layout = model.layout
        self._site = SiteState(self.spool.folder, task, model.local)
        self._base = BaseVersion(self.name, self.topology, self.stop, self.first_patience_s)
        self._trainer = Trainer(
            task,
            self._site,
            self.seed,
            self.delay_s,
            self.step_delay_s,
            Pace(task, self.examples, self.delay_s, self.memory_mib),
            TrainedPart(task, model.layout, self.train_share),
            self.show_round,
            self.stop,
            self.event_sink,
        )
        self._validation = SiteValidation(self.name, task, self._site, self.topology, self.event_sink)
        released = ReleasedUpdates(self.spool.folder)
        self._secure = SecureSite(
            keys=self.keys,
            topology=self.topology,
            stop=self.stop,
            train_share=self.train_share,
            released=released,
        )
        self._sealed = SealedSite(key=self.sealed_key, only=self.sealed_only, train_share=self.train_share)
        self._turn = PrivateTurn(
            worker=self.name,
            topology=self.topology,
            stop=self.stop,
            train_share=self.train_share,
            spool=self.spool,
            released=released,
        )
        self._survey = SurveyAtSite(
            self.name,
            task,
            self.site,
            self._site,
            self.topology,
            self.stop,
            self._secure,
            self.spool,
            self._send_all,
        )
        self._watcher = RoundWatcher(self.topology)
        self._refused = 0
        self._ended_by = ""
        self._noted: Rank | None = None

    def work(
        self, connect: Connect, *, try_to_connect: Connect | None = None, patience_s: float = math.inf
    ) -> WorkerResult:
        """Train round after round until the federation has finished, or until asked to stop.

        `connect` waits for the broker. With `try_to_connect`, which does not wait, the worker continues to
        train from the newest version that it has while the broker is unreachable. If every connection ends
        within a second for `patience_s`, the last error is raised. An unconfirmed update is sent again under
        the same id. Raises LayoutError when the federation's model differs from the task's, MessageTooLarge
        when no update of it could be sent, and ConfigError when either the plan or this worker wants secure
        aggregation, or a sealed federation, and the other does not.
        """

        def connect_or_train() -> Broker:
            return (try_to_connect and self._train_until_connected(try_to_connect)) or connect()

        self._secure.prepare(self.spool)
        self._sealed.prepare(self.spool)
        if self.spool.waiting:
            log.info("the spool has unsent updates of an earlier run", updates=self.spool.waiting)
        try:
            with suppress(StopRequested):
                work = until_federation_is_gone(self._work_on)
                run_with_reconnect(connect_or_train, work, self.stop, self.event_sink, patience_s=patience_s)
            if self.stop.is_set() and not self._ended_by:
                log.info("asked to stop", rounds=self._trainer.rounds)
        finally:
            if self.spool.waiting:
                log.warning(
                    "unsent updates remain in the spool: start this worker again to send them",
                    updates=self.spool.waiting,
                    spool=str(self.spool.folder),
                )
        last = self._base.last
        return WorkerResult(
            ended_by=self._ended_by,
            rounds=self._trainer.rounds,
            aborted=self._trainer.aborted,
            version=last.version if last else None,
            refused=self._refused,
            waiting=self.spool.waiting,
        )

    def _work_on(self, broker: Broker) -> None:
        while found := self._base.newest(broker, has_unsent=bool(self.spool.waiting)):
            self._start_over_after_a_reset(found)
            version = found if found.finished else self._sealed.opened(found)
            if self.insistence and not version.finished:
                self.insistence.require(version)
            self._warn_of_refusals(version)
            if self.note and version.rank != self._noted:
                self.note(version)
                self._noted = version.rank
            if version.is_over:
                self._finish(version, broker)
                return
            self._secure.require(version)
            self._turn.begin(version)
            if self._sealed.add_refresh(self.spool, found, self.name):
                self._send_all(version, broker)
            if spent := self._turn.why_spent(version):
                self._leave(spent)
                return
            if self._survey.is_open(version, broker):
                continue
            self._survey.prepare(version)
            if not self.spool.waiting:
                if not (self._secure.is_ready(version, broker) and self._turn.is_ready(version, broker)):
                    continue
                self._validation.evaluate_when_due(version)
                self._validation.send(broker, version)
                self._train(version, broker)
            self._send_all(version, broker)
            self._validation.evaluate_round(version)
            self._validation.send(broker, version)

    def _send_all(self, version: ModelVersion, broker: Broker) -> None:
        send_all(
            self.spool,
            broker,
            self.topology,
            version,
            worker=self.name,
            stop=self.stop,
            event_sink=self.event_sink,
        )

    def _train_until_connected(self, try_to_connect: Connect) -> Broker | None:
        """Train from the last version until a connection succeeds.

        None when there is no version to train from, or one of another epoch than the keys, when the
        federation is missing, or in synchronous rounds and with differential privacy, where a second update
        for the same version would be refused: then the caller waits for the broker.
        """
        base = self._base
        attempts, next_attempt = 0, time.monotonic()
        while base.last and base.last.plan.may_repeat and self._secure.is_current(base.last):
            if time.monotonic() >= next_attempt:
                try:
                    return try_to_connect()
                except TopologyMissing:
                    return None
                except ConnectionLost as error:
                    if self.stop.is_set():
                        raise
                    attempts += 1
                    next_attempt = time.monotonic() + wait_before(attempts)
                    log.warning("training without the broker", because=str(error), waiting=self.spool.waiting)
            if not base.is_ahead():
                self._train(base.last)
                if base.is_ahead():
                    log.info(
                        "enough updates are in flight: waiting for the broker", in_flight=len(base.in_flight)
                    )
            elif self.stop.wait(max(0.0, next_attempt - time.monotonic())):
                raise StopRequested
        return None

    def _train(self, version: ModelVersion, broker: Broker | None = None) -> None:
        """Train one round as the version's plan says, and put the update into the spool.

        With a broker the round is aborted when newer versions make its update useless.
        """
        version.layout.require(self._layout)
        self._survey.prepare(version)
        require_planned_update_fits(self._trainer.next_part(), version.plan, self.max_message_bytes)
        self.spool.compare(version.applied)
        is_awaited = self._validation.is_needed
        with self._watcher.watching(broker, version, until_the_end=is_awaited) as watch:
            trained = self._trainer.train(version, self.spool.next_id, watch)
        self._base.note_round(version, trained)
        if trained:
            self._validation.note_round(version, trained)
            if version.plan.sealed:
                self._sealed.add_sealed(self.spool, trained, version)
                return
            found = self._validation.newest
            add_to_spool(self.spool, trained, found, version, self._secure, seed=self.seed)
            self._turn.note_round(version)

    def _start_over_after_a_reset(self, version: ModelVersion) -> None:
        """Drop all state of the previous federation when another one has taken its place."""
        if not self._site.belongs_to(version):
            dropped = self.spool.start_over()
            self._site.start_over()
            self._base.start_over()
            self._turn.start_over()
            self._sealed.start_over()
            self._validation.start_over()
            self._refused = 0
            say = log.warning if dropped else log.info
            say(
                "the federation was reset: this worker dropped its state of the previous federation and "
                "continues from the newest version",
                version=version.version,
                dropped_updates=dropped,
            )
        self._site.remember(version)

    def _warn_of_refusals(self, version: ModelVersion) -> None:
        """Warn when updates of this worker were refused: the first time, and then at powers of two."""
        if facts := version.contributors.get(self.name):
            if facts.rejected.bit_length() > self._refused.bit_length():
                log.warning(
                    "the aggregator refuses updates of this worker",
                    refused=facts.rejected,
                    last=facts.refusal,
                )
            self._refused = facts.rejected

    def _leave(self, because: str) -> None:
        """End before the federation does."""
        self._ended_by = because
        log.info("leaving", because=because, rounds=self._trainer.rounds)
        if unsent := self.spool.clear():
            log.info("dropped unsent updates from the spool: they would be refused", updates=unsent)

    def _finish(self, version: ModelVersion, broker: Broker) -> None:
        if not version.finished and not self._secure.insists:
            # The aggregator waits for what the last model is worth here.
            self._survey.prepare(version)
            self._validation.evaluate(version)
            self._validation.send(broker, version)
        self._ended_by = version.finished or version.closing
        log.info("the federation has finished", because=self._ended_by, rounds=self._trainer.rounds)
        if late := self.spool.clear():
            log.info("dropped unsent updates from the spool: the federation has finished", updates=late)
