"""The head queue: the truth from which every aggregator starts, and from which the streams are rebuilt."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, ProtocolMismatch, StreamUnreadable, TopologyMissing
from fluffle.framing import record_digest
from fluffle.logs import get_logger
from fluffle.model_stream import record_at_hand, stored_at_hand, version_at_hand
from fluffle.pieces import Body
from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import checksum_of, decode_record, encode_copy, version_pieces, without_weights
from fluffle.secure.sums import SumRecord
from fluffle.topology import HEAD_LENGTH, Topology

log = get_logger(__name__)

# A node that has just started opens its streams first, and a cluster that lost one elects another leader.
UNREADABLE_FOR_S = 20.0
UNREADABLE_TIMES = 3
# Failures further apart are not in a row: this aggregator stood by in between.
IN_A_ROW_S = 30.0
# A look at records that RabbitMQ does not answer takes a minute.
RECORDS_IN_A_ROW_S = 180.0
LOOK_AT_HEAD_EVERY_S = 10.0
# A record is small, and if none comes it is published once more.
RECORD_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The newest committed version, as it lies in the head queue.

    `term` is the highest term that anybody has published under; a new leader goes one above it. `messages`
    counts those in the queue. `sums` are those of secure aggregation that lie there, oldest first.
    """

    record: ModelVersion
    moments: MomentsRecord | None
    digest: str
    term: int
    messages: int
    sums: tuple[SumRecord, ...] = ()


class ReadFailures:
    """Remembers, from one connection to the next, how often a stream could not be read.

    A power cut can leave a stream that RabbitMQ fails to open again and again. Whoever reads it gets an
    error, or loses the connection.
    """

    def __init__(self, clock: Callable[[], float], *, in_a_row_s: float = IN_A_ROW_S) -> None:
        self._clock = clock
        self._in_a_row_s = in_a_row_s
        self._since = self._last = 0.0
        self._count = 0

    @property
    def are_none(self) -> bool:
        """Whether it could be read when somebody last tried."""
        return self._count == 0

    @property
    def are_final(self) -> bool:
        """Whether it has failed so often, and for so long, that it will not become better."""
        return self._count >= UNREADABLE_TIMES and self._clock() - self._since >= UNREADABLE_FOR_S

    def note(self) -> None:
        """Count one more failure."""
        now = self._clock()
        if self._count == 0 or now - self._last > self._in_a_row_s:
            self._count, self._since = 0, now
        self._last = now
        self._count += 1

    def forget(self) -> None:
        """Begin again, after the stream was read or recreated."""
        self._count = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Read the stream in this block: count a failure and raise it, or begin again after a success."""
        try:
            yield
        except (StreamUnreadable, ConnectionLost):
            self.note()
            raise
        self.forget()


class StreamHealth:
    """Remembers, from one connection to the next, what head and streams were like.

    A virtual host that was deleted and created again has neither head nor stream: an aggregator that was
    there before must not take it for a new federation.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.models = ReadFailures(clock)
        self._clock = clock
        self._has_seen_versions = False
        self._look_at_head_at = clock()
        self._is_compared = False
        self._record: ModelVersion | None = None

    def look_at_head_when_due(self, broker: Broker, topology: Topology) -> None:
        """See now and then whether the head holds a version; for a standby, which does not read it."""
        if self._has_seen_versions or self._clock() < self._look_at_head_at:
            return
        self._look_at_head_at = self._clock() + LOOK_AT_HEAD_EVERY_S
        self._has_seen_versions = broker.state(topology.head.name).messages > 0

    def record_to_compare(self, broker: Broker, topology: Topology) -> ModelVersion | None:
        """Return the newest version without its weights, once it has been read, and None at all other calls.

        It is read once and in the background: a stream that cannot be read must not hold up a standby.
        """

        def read(background: Broker) -> None:
            self._record = record_at_hand(background, topology)

        if self._has_seen_versions and not self._is_compared:
            self._is_compared = True
            broker.in_background(read)
        record, self._record = self._record, None
        return record

    def note_version(self) -> None:
        """Take note that the head holds a version."""
        self._has_seen_versions = True

    def require_new_federation(self, topology: Topology) -> None:
        """Raise TopologyMissing when this process has seen versions of a federation that is empty now."""
        if self._has_seen_versions:
            raise TopologyMissing(
                f"the federation {topology.federation!r} had versions, and now {topology.head.name} and "
                f"{topology.models.name} are empty: somebody has made them, or the virtual host, anew. Put a "
                "version back that you have kept (`fluffle model restore FILE`), or start the aggregators "
                "again to begin anew"
            )

    def newest(self, broker: Broker, topology: Topology) -> Rank | None:
        """Return the rank of the newest version in F.models. Raises StreamUnreadable or ConnectionLost."""
        with self.models.counting():
            found = version_at_hand(broker, topology)
        return found.rank if found else None


def publish_version(broker: Broker, topology: Topology, record: ModelVersion, downlink_codec: str) -> str:
    """Publish a version's record to head and streams, and return its digest.

    In float32, head and F.models get it in one publish with one confirm. In another codec the head gets the
    record, and F.models a copy once that is confirmed: should this process die between the two, F.models is
    behind the head, and the next leader brings it up to date. With differential privacy it is the same, so
    that nobody sees a version that another one, with other noise, takes the place of. The last version goes
    out as it is, for whoever keeps it. F.records comes last, and nobody waits for it.
    """
    body = version_pieces(record)
    digest = record_digest(body)
    headers = version_headers(record)
    is_exact = _travels_exactly(record, downlink_codec)
    if is_exact and record.privacy is None:
        broker.publish(topology.versions_in.name, "", body, headers)
    else:
        broker.publish(topology.head_in.name, "", body, headers)
        copy = body if is_exact else encode_copy(record, downlink_codec, digest)
        headers["kind"] = "version" if is_exact else "copy"
        broker.publish(topology.models_in.name, "", copy, headers)
    publish_record(broker, topology, body)
    return digest


def version_headers(record: ModelVersion) -> dict[str, str]:
    """Return the headers of a version's message, for people who look into the queues."""
    return {"kind": "version", "id": f"{record.federation}/{record.term}/{record.version}"}


def publish_record(broker: Broker, topology: Topology, body: Body) -> None:
    """Publish a version that the head has confirmed to F.records, without its weights.

    Nothing waits for it, and nothing fails with it (docs/decisions/0021). The start of the version's message
    is enough.
    """
    broker.publish_unconfirmed(topology.records_in.name, "", without_weights(body), kind="record")


def _travels_exactly(record: ModelVersion, downlink_codec: str) -> bool:
    return downlink_codec == "float32" or bool(record.finished)


def claimed_terms(broker: Broker, topology: Topology) -> list[int]:
    """Return the terms that are claimed in a head that holds no version.

    `fluffle federation reset` leaves one there, higher than any that the workers have seen.
    """
    ranks = [each.rank for each in _look_through(broker, topology).messages]
    return [rank.term for rank in ranks if rank.version == 0]


def read_head(
    broker: Broker, topology: Topology, stream_health: StreamHealth, downlink_codec: str = "float32"
) -> Head | None:
    """Return the newest committed version, None in a new federation, and bring head and streams up to it.

    A stream that cannot be read any more is recreated. Raises TopologyMissing when versions are in F.models,
    or may be, but the head queue is empty, or older than a rounded copy in F.models: it has lost messages.
    """
    is_readable = not stream_health.models.are_final
    # Before the head: a leader that died while it read the head has it back by then.
    in_stream = stream_health.newest(broker, topology) if is_readable else None
    found = _look_through(broker, topology)
    if found.newest is None:
        if in_stream is not None:
            raise TopologyMissing(
                f"the stream {topology.models.name} holds version {in_stream}, but the queue "
                f"{topology.head.name} that a leader starts from is empty: it was deleted or purged, or a "
                f"policy empties it (`fluffle status` names it). Write the newest version to a file "
                f"(`fluffle model export --out newest.fluffle`) and put it back (`fluffle model restore "
                f"newest.fluffle`)"
            )
        if not is_readable:
            raise TopologyMissing(
                f"the stream {topology.models.name} cannot be read, and the queue {topology.head.name} is "
                f"empty: put back a version that you have kept (`fluffle model restore FILE`), or delete "
                f"both queues to begin anew"
            )
        return None
    if in_stream is not None and in_stream > found.newest.rank:
        _bring_up_to_the_stream(broker, topology, found)
    record, body = found.newest, found.newest_body
    digest = record_digest(body)
    if not is_readable:
        log.warning(
            "recreating the stream of models from the head, since it cannot be read", version=record.version
        )
        broker.recreate_stream(topology.models)
        stream_health.models.forget()
    if in_stream is None or in_stream < record.rank:
        log.warning(
            "publishing the head's version to the stream of models, which lacks it", version=record.version
        )
        copy = (
            body if _travels_exactly(record, downlink_codec) else encode_copy(record, downlink_codec, digest)
        )
        broker.publish(topology.models_in.name, "", copy, {"kind": "version"})
    # The leader before may have died between its commit and its record. Readers pass over one that is there.
    publish_record(broker, topology, body)
    moments = found.moments()
    if record.moments_checksum is not None and not moments:
        log.warning("the strategy begins anew: its moments are gone", version=record.version)
    _bring_orphans_to_the_front(broker, topology, found.messages, record.rank)
    terms = [each.rank.term for each in found.messages]
    term = max([*terms, in_stream.term if in_stream else 0])
    return Head(record, moments, digest, term, messages=len(found.messages), sums=tuple(found.sums))


@dataclass(frozen=True, slots=True)
class _InHead:
    """A message in the head, and its body, which is empty if nobody needs it any more."""

    rank: Rank
    body: bytes
    is_sum: bool

    def is_needed(self, newest: Rank) -> bool:
        """Return whether it belongs to the newest version, or is a sum for the next one."""
        return self.rank == newest or (self.is_sum and self.rank.version == newest.version + 1)


@dataclass(slots=True, eq=False)
class _Found:
    """What lies in the head: the rank of each message, and the bodies that may be of use."""

    messages: list[_InHead] = field(default_factory=list)
    newest: ModelVersion | None = None
    newest_body: bytes = b""
    sums: list[SumRecord] = field(default_factory=list)

    def add(self, body: bytes) -> None:
        """Note the next message, and drop the bodies that a newer version has made useless."""
        record = decode_record(body)
        self.messages.append(_InHead(record.rank, body, isinstance(record, SumRecord)))
        if isinstance(record, SumRecord):
            self.sums.append(record)
        if isinstance(record, ModelVersion) and (self.newest is None or record.rank > self.newest.rank):
            self.newest, self.newest_body = record, body
            self.messages = [
                each if each.rank >= record.rank or each.is_needed(record.rank) else replace(each, body=b"")
                for each in self.messages
            ]

    def moments(self) -> MomentsRecord | None:
        """Return the moments that the newest version names; None when it names none, or they are gone."""
        for each in self.messages:
            if self.newest and each.rank == self.newest.rank:
                record = decode_record(each.body)
                # By checksum: one that lost the lead may have sent others of this rank, which come late.
                if isinstance(record, MomentsRecord) and checksum_of(record) == self.newest.moments_checksum:
                    return record
        return None


def _look_through(broker: Broker, topology: Topology) -> _Found:
    found = _Found()
    with broker.peek(topology.head.name) as bodies:
        for body in bodies:
            try:
                found.add(body)
            except ProtocolMismatch as error:
                raise ProtocolMismatch(
                    f"the queue {topology.head.name} holds a version of the model that this Fluffle cannot "
                    f"continue: {error}, or give this federation another name"
                ) from error
    return found


def _bring_up_to_the_stream(broker: Broker, topology: Topology, found: _Found) -> None:
    """Put the newest version of F.models into the head, which lacks it.

    A leader died before the head had it, or the head has lost it: a look into a queue lets messages expire
    that stand behind the ones looked at. Its updates may be acked, so nobody may go on from an older one.
    """
    ahead = stored_at_hand(broker, topology)
    if ahead is None:
        raise ConnectionLost(f"the newest version in {topology.models.name} cannot be read any more")
    if ahead.version.copy_of:
        # Copies are sent when the head has confirmed the version itself.
        raise TopologyMissing(
            f"the queue {topology.head.name} has lost version {ahead.version.rank}: the stream has a rounded "
            f"copy of it. Look for a policy with message-ttl or max-length (`fluffle status`), and put the "
            f"copy back (`fluffle model export --out newest.fluffle`, `fluffle model restore newest.fluffle`)"
        )
    log.warning(
        "the head lacks the newest version and gets it from the stream", version=ahead.version.version
    )
    broker.publish(topology.head_in.name, "", ahead.body, {"kind": "version"})
    found.add(ahead.body)


def bring_records_up_to_date(
    broker: Broker, topology: Topology, newest: Rank, body: Callable[[], bytes | None], failures: ReadFailures
) -> None:
    """Publish the newest version's record to F.records again if that lacks it.

    RabbitMQ may have lost it, or dropped it while it could not take it. `body` returns the start of the
    version's message, None when it is gone. A stream that cannot be read is logged, and recreated after a
    while. All of this happens in the background: a leader never waits for records.
    """

    def look(background: Broker) -> None:
        if failures.are_final:
            log.warning("recreating the stream of records, which cannot be read: earlier records are gone")
            background.recreate_stream(topology.records)
            failures.forget()
        try:
            with failures.counting():
                found = record_at_hand(background, topology, patience_s=RECORD_PATIENCE_S)
        except TopologyMissing:
            return  # somebody has just deleted it: TopologyWatch says so
        if (found is None or found.rank < newest) and (start := body()):
            publish_record(broker, topology, start)

    broker.in_background(look)


def _bring_orphans_to_the_front(
    broker: Broker, topology: Topology, messages: list[_InHead], newest: Rank
) -> None:
    """Make sure that the next publish pushes out of the full queue what nobody needs.

    A leader that dies between its moments and their record leaves moments behind that belong to no record.
    A few such leaders in a row would push out the record that all start from. One place is kept for what
    arrives late, from a leader that has lost its connection, before the next one begins.
    """
    waiting = deque(messages)
    while (
        len(waiting) >= HEAD_LENGTH - 1
        and waiting[0].is_needed(newest)
        and not all(each.is_needed(newest) for each in waiting)
    ):
        broker.publish(topology.head_in.name, "", waiting[0].body, {})
        waiting.rotate(-1)
