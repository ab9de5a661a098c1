"""Performs what the leader decides, on the one channel that it consumes, publishes and acks on."""

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace

from fluffle.broker import Broker, Delivery, Listener
from fluffle.errors import TopologyMissing
from fluffle.logs import get_logger
from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import require_readable_version
from fluffle.secure.closing import encode_close
from fluffle.topology import MIB
from fluffle_aggregator.best_keeper import BestKeeper
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.effects import (
    Ack,
    Ask,
    Commit,
    Effect,
    GiveBack,
    Log,
    LookFor,
    Now,
    PublishSum,
    Reject,
    Tell,
    TryOut,
)
from fluffle_aggregator.head import Head, StreamHealth, claimed_terms, publish_version, read_head
from fluffle_aggregator.head_keeper import HeadKeeper
from fluffle_aggregator.leader import Leader

log = get_logger(__name__)

LEVELS = logging.getLevelNamesMapping()
# Kept updates of less than this many bytes beside a version are not worth a warning.
LARGE_BYTES = 64_000_000
# For openings of a large model: of each group one, or of each helper one.
OPENINGS_MAX_BYTES = 4096 * MIB
ANSWER_PATIENCE_S = 0.1


class Leading:
    """One leader at work on one connection, from its takeover on."""

    def __init__(
        self,
        config: AggregatorConfig,
        broker: Broker,
        stream_health: StreamHealth,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        make_leader: type[Leader] = Leader,
    ) -> None:
        """Take over: read the head, or publish version 0 in a new federation."""
        self._config = config
        self._broker = broker
        self._clock = clock
        self._unix_clock = unix_clock
        self._has_warned_of_size = False
        head = read_head(broker, config.topology, stream_health, config.downlink_codec)
        if head is None:
            head = begin_federation(config, broker, stream_health)
        stream_health.note_version()
        self._head = HeadKeeper(
            broker,
            config.topology,
            config.downlink_codec,
            messages=head.messages,
            sums=[each for each in head.sums if each.close.version > head.record.version],
            clock=clock,
        )
        self._best = BestKeeper(broker, config.topology, clock=clock)
        self._leader = make_leader(
            config.continue_from(head),
            config.topology,
            config.limits,
            config.commit_schedule,
            parent=head.digest,
            now=self._now(),
            committee=config.committee() if config.committee else None,
            sums=head.sums,
        )
        self._openings = ExitStack()
        self._answers: Listener | None = None
        if config.committee:
            # Before anything is asked: what is published without a listener is gone. Its name is of its own,
            # since the connection of the leader before may be there still.
            exchange, name = config.topology.openings_in.name, f"{config.name}.{secrets.token_hex(4)}"
            listener = broker.listen(exchange, name=name, max_bytes=OPENINGS_MAX_BYTES)
            self._answers = self._openings.enter_context(listener)
        self._perform(self._leader.begin(self._now()))

    @property
    def finished(self) -> str:
        """Why the federation has ended; empty until it has."""
        return self._leader.finished

    @property
    def record(self) -> ModelVersion:
        """The newest version, as it was published."""
        return self._leader.model.record

    @property
    def held(self) -> int:
        """The number of updates that are not acked yet, since no committed version contains them."""
        return self._leader.unacked

    def take_in(self, delivery: Delivery) -> None:
        """Take in one message."""
        self._perform(self._leader.take_in(delivery, self._now()))

    def next_delivery(self, patience_s: float) -> Delivery | None:
        """Return the next message, or None when none came; while a sum is awaited, hear the helpers too."""
        if not self._leader.awaits_openings:
            return self._broker.next_delivery(patience_s)
        self.hear(min(patience_s, ANSWER_PATIENCE_S))
        return self._broker.next_delivery(0)

    def hear(self, timeout_s: float = 0.0) -> None:
        """Take in what helpers answer, of which the first may take so long to come.

        After a moment this returns even if more answers wait: the leader has other work too.
        """
        until = self._clock() + max(timeout_s, ANSWER_PATIENCE_S)
        while self._answers and self._leader.awaits_openings and self._clock() < until:
            answer = self._answers.next_delivery(timeout_s)
            if answer is None:
                return
            self._perform(self._leader.take_answer(answer))
            self._perform(self._leader.tick(self._now()))
            timeout_s = 0.0

    def close(self) -> None:
        """Listen no more; the connection stays."""
        self._openings.close()

    def tick(self) -> None:
        """Commit if it is time to, and look after the head queue and the best version."""
        self._perform(self._leader.tick(self._now()))
        self.look_after_head()
        self._best.keep_when_due(self.record)

    def look_after_head(self) -> None:
        """See now and then that the head queue holds what was published, and put back what is gone."""
        leader = self._leader
        if not self._head.is_whole_when_due(self.record, leader.model.moments_at, leader.parent):
            # Steps were made since the newest version, so that it cannot be published again.
            self._perform(leader.commit_newer(self._now()))

    def _now(self) -> Now:
        return Now(self._clock(), self._unix_clock())

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Perform effects in their order; what follows from one comes before the next."""
        for effect in effects:
            self._perform(self._perform_one(effect))

    def _perform_one(self, effect: Effect) -> list[Effect]:
        match effect:
            case Ack(tags):
                self._broker.ack(tags)
            case Tell() | Log():
                self._say(effect)
            case Reject():
                self._reject(effect)
            case GiveBack() | PublishSum() | Ask():
                self._perform_secure(effect)
            case TryOut(delivery):
                ended = self._config.try_out(self._leader.model, delivery)
                return self._leader.tried(delivery, ended, self._now())
            case LookFor(workers):
                return self._leader.absent([each for each in workers if not self._is_at_work(each)])
            case Commit(record, moments):
                if moments:
                    self._head.publish_moments(moments)
                    self._warn_once_of_size(record, moments)
                began = self._clock()
                digest = self._head.publish(record)
                took_s = self._clock() - began
                self._best.note_published(record)
                return self._leader.committed(record, digest=digest, took_s=took_s, now=self._now())
        return []

    def _say(self, effect: Tell | Log) -> None:
        match effect:
            case Tell(event):
                self._config.event_sink(event)
            case Log(level, event, fields):
                if log.isEnabledFor(LEVELS[level]):
                    log.log(LEVELS[level], event, **fields)

    def _perform_secure(self, effect: GiveBack | PublishSum | Ask) -> None:
        match effect:
            case GiveBack(tags):
                self._broker.give_back(tags)
            case PublishSum(record):
                self._head.publish_sum(record)
            case Ask(close):
                exchange = self._config.topology.closes_in.name
                self._broker.publish(exchange, "", encode_close(close), {"kind": "close"})

    def _is_at_work(self, worker: str) -> bool:
        """Tell whether a process works under a worker's name: it consumes the queue of that name."""
        try:
            return self._broker.state(self._config.topology.worker_lock(worker)).consumers > 0
        except TopologyMissing:
            return False

    def _warn_once_of_size(self, record: ModelVersion, moments: MomentsRecord) -> None:
        """Warn when the updates that a strategy keeps are large, and larger than the version itself."""
        kept_bytes = sum(each.vector.payload.nbytes for each in moments.cached)
        if self._has_warned_of_size or kept_bytes <= max(LARGE_BYTES, record.payload_size_bytes):
            return
        self._has_warned_of_size = True
        log.warning(
            "the workers' last updates, which this strategy publishes with each version, are larger than the "
            "version: publish less often with --commit-every, or choose --strategy fedbuff, which keeps none",
            strategy=record.strategy,
            workers=len({each.worker for each in moments.cached}),
            kept_mb=round(kept_bytes / 1e6, 1),
            version_mb=round(record.payload_size_bytes / 1e6, 1),
        )

    def _reject(self, rejected: Reject) -> None:
        delivery, refusal = rejected.delivery, rejected.refusal
        headers = {
            **rejected.headers,
            "reason": refusal.reason,
            "detail": refusal.detail[:1000],
            "user": delivery.user or "",
            "from": self._config.topology.updates.name,
            "through": delivery.exchange,
            "published_at": f"{delivery.published_at:.3f}",
            "at": f"{self._unix_clock():.3f}",
        }
        self._broker.publish(self._config.topology.rejected_in.name, "", delivery.body, headers)
        self._broker.ack([delivery.tag])


def begin_federation(config: AggregatorConfig, broker: Broker, stream_health: StreamHealth) -> Head:
    """Publish version 0, in a term above every one that `fluffle federation reset` has claimed.

    Raises TopologyMissing when nothing is claimed, and this process has seen versions before: then the
    broker has lost them.
    """
    claimed = claimed_terms(broker, config.topology)
    if not claimed:
        stream_health.require_new_federation(config.topology)
    term = max(claimed, default=0) + 1
    first = replace(config.first_version(), term=term, terms=(Rank(term, 0),))
    require_readable_version(first)
    digest = publish_version(broker, config.topology, first, config.downlink_codec)
    log.info("new federation", version=0, term=term, parameters=first.layout.size)
    return Head(first, None, digest, term - 1, messages=len(claimed) + 1)
