"""Reading versions from a federation's two streams.

`F.models` has the models, for workers, evaluators and exports. `F.records` has the record of each version
without its weights, for everything that watches.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from typing import TypeVar

from fluffle.broker import Broker, StreamReader
from fluffle.errors import AccessRefused, ProtocolMismatch, TopologyMissing, WireError
from fluffle.framing import record_digest
from fluffle.logs import get_logger
from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import claimed_rank, decode_version, decode_without_weights, require_protocol
from fluffle.topology import MIB, Queue, Topology

log = get_logger(__name__)

POLL_S = 0.5
# "last" means the last chunk of the stream, which may hold several versions and has no mark of its end.
QUIET_S = 0.05
# More messages than were ever seen in a chunk. New ones may arrive while it is read, without end.
MOST_IN_A_CHUNK = 32
# For so long, further records are read: where nothing new arrives, even a chunk of thousands is read by then.
MOST_READING_S = 0.5
# Beyond this many bytes, only the newest version of what was received is kept.
MOST_BYTES_ASIDE = 16 * MIB
# If nothing arrives for this long, not even a part of a large model on a slow link, the stream is empty.
NOTHING_THERE_S = 2.0
SLOW_LINK_S = 10.0
# How often a log line says that a newer version is still waited for.
SAY_EVERY_S = 60.0
# Most records are small, and one at a time takes long on a link with a high latency. A record may have 8 MiB:
# no more than 32 MiB wait in a reader's memory.
RECORDS_PREFETCH = 4
# A version's parent is the one before it, or one of these where a leader that lost the lead came in between.
MOST_PARENTS = 64

Found = TypeVar("Found")
Decode = Callable[[bytes], ModelVersion]


@dataclass(frozen=True, slots=True, eq=False)
class StoredVersion:
    """A version, and the message that it was read from.

    From `F.models` that is all that a successor of the aggregator needs, unless versions travel in another
    codec than float32: then it may be a rounded copy.
    """

    version: ModelVersion
    body: bytes

    @property
    def digest(self) -> str:
        """The digest of the record, also where this is a copy of it."""
        return self.version.copy_of or record_digest(self.body)


def newest_version(
    broker: Broker,
    topology: Topology,
    *,
    stop: threading.Event,
    newer_than: Rank | None = None,
    timeout_s: float = math.inf,
) -> ModelVersion | None:
    """Return the newest version, and wait for one that is newer than `newer_than` if need be.

    Versions in between are not read. None when `stop` is set first, or after `timeout_s`.
    """
    began = said_at = time.monotonic()
    with broker.read_stream(topology.models.name, offset="last") as reader:
        while not stop.is_set() and time.monotonic() - began < timeout_s:
            if time.monotonic() - said_at >= SAY_EVERY_S:
                said_at = time.monotonic()
                log.info("waiting for a newer version: is an aggregator at work?", known=str(newer_than))
            newest = _newest_of_last_chunk(reader, decode_version, POLL_S, most_s=0.0)
            if newest and (newer_than is None or newest.version.rank > newer_than):
                return newest.version
            if newest and newer_than and newest.version.term < newer_than.term:
                log.warning(
                    "passed over a version of an aggregator that has lost the lead; if the federation was "
                    "deleted and begun anew, start this process again",
                    version=str(newest.version.rank),
                    known_term=newer_than.term,
                )
    return None


def version_at_hand(broker: Broker, topology: Topology) -> ModelVersion | None:
    """Return the newest version that `F.models` has now, or None when it is empty."""
    stored = stored_at_hand(broker, topology)
    return stored.version if stored else None


def stored_at_hand(
    broker: Broker, topology: Topology, *, patience_s: float = NOTHING_THERE_S
) -> StoredVersion | None:
    """Return the newest version that `F.models` has now, with its message, or None when it is empty.

    RabbitMQ does not say whether a stream is empty. `patience_s` is how long to wait for its first message
    where the head queue is empty.
    """
    try:
        if broker.state(topology.head.name).messages:
            # There should be a model, however slowly a large one comes over the network.
            patience_s = SLOW_LINK_S
    except TopologyMissing:
        pass  # somebody deleted the head: what is in the stream can be read all the same
    with broker.read_stream(topology.models.name, offset="last") as reader:
        return _newest_of_last_chunk(reader, decode_version, patience_s)


def await_record(
    broker: Broker,
    topology: Topology,
    is_wanted: Callable[[ModelVersion], bool],
    *,
    stop: threading.Event,
    timeout_s: float,
) -> None:
    """Read records without weights until the newest one is wanted, `stop` is set, or time is out."""
    began = time.monotonic()
    with _read_records(broker, topology.records, "last") as reader:
        while not stop.is_set() and time.monotonic() - began < timeout_s:
            found = _newest_of_last_chunk(reader, decode_without_weights, POLL_S, most_s=MOST_READING_S)
            if found and is_wanted(found.version):
                return


def best_at_hand(broker: Broker, topology: Topology, version: int) -> StoredVersion | None:
    """Return a version that was the best one when `F.models` was about to lose it, None if it was not."""
    try:
        with broker.read_stream(topology.best.name, offset="last") as reader:
            stored = _newest_of_last_chunk(reader, decode_version, NOTHING_THERE_S)
    except (TopologyMissing, AccessRefused) as error:
        log.info("cannot look for the best version where it is kept", because=str(error))
        return None
    return stored if stored and stored.version.version == version else None


def all_stored(broker: Broker, topology: Topology) -> Iterator[StoredVersion]:
    """Yield every version that `F.models` still holds, with its message, in ascending order."""
    newest = version_at_hand(broker, topology)
    yield from _all_up_to(newest, broker.read_stream(topology.models.name, offset="first"), decode_version)


def record_at_hand(
    broker: Broker, topology: Topology, *, patience_s: float = NOTHING_THERE_S
) -> ModelVersion | None:
    """Return the newest version that `F.records` has now, without its weights, or None when it is empty.

    Where versions come so quickly that there is always another one to read, it may be a moment old.
    """
    stored = stored_record_at_hand(broker, topology, patience_s=patience_s)
    return stored.version if stored else None


def stored_record_at_hand(
    broker: Broker, topology: Topology, *, patience_s: float = NOTHING_THERE_S
) -> StoredVersion | None:
    """Return the same as `record_at_hand`, with its message."""
    with _read_records(broker, topology.records, "last") as reader:
        return _newest_of_last_chunk(reader, decode_without_weights, patience_s, most_s=MOST_READING_S)


def all_records(broker: Broker, topology: Topology) -> Iterator[ModelVersion]:
    """Yield every version that `F.records` still holds, without its weights, in ascending order."""
    newest = record_at_hand(broker, topology)
    stream = _read_records(broker, topology.records, "first")
    return (stored.version for stored in _all_up_to(newest, stream, decode_without_weights))


def _all_up_to(
    newest: ModelVersion | None, stream: AbstractContextManager[StreamReader], decode: Decode
) -> Iterator[StoredVersion]:
    """Yield the versions of a stream, up to the newest one, and only those that are newer than all before.

    A new leader may publish the version that it starts from again, and one that has lost the lead may publish
    late.
    """
    if newest is None:
        return
    yielded: Rank | None = None
    with stream as reader:
        while (body := reader.next_body(SLOW_LINK_S)) is not None:
            version = _or_passed_over(decode, body)
            if version and (yielded is None or version.rank > yielded):
                yielded = version.rank
                yield StoredVersion(version, body)
            if version and version.rank >= newest.rank:
                return


class MissingRecords:
    """Finds gaps in `F.records`: a version there that does not name one of those before it as its parent.

    A record may be lost with the connection of a leader, and RabbitMQ may lose many when its machine loses
    power: it does not flush streams to the disk. The head queue loses none, but holds the newest alone.
    """

    def __init__(self) -> None:
        self._digests: deque[str] = deque(maxlen=MOST_PARENTS)

    def are_before(self, version: ModelVersion) -> bool:
        """Tell whether records are missing between the version that was given before and this one.

        The versions are those of `all_records`, in their order; nothing is missing before the first.
        """
        is_gap = bool(self._digests) and version.parent not in self._digests
        self._digests.append(version.copy_of)
        return is_gap


@contextmanager
def _read_records(broker: Broker, stream: Queue, offset: str) -> Iterator[StreamReader]:
    try:
        with broker.read_stream(stream.name, offset=offset, prefetch=RECORDS_PREFETCH) as reader:
            yield reader
    except AccessRefused as error:
        raise AccessRefused(
            f"{error}. An earlier version of Fluffle gave its users no right to {stream.name}: make the user "
            "again (`fluffle user remove`, `fluffle user add`)"
        ) from error


def _newest_of_last_chunk(
    reader: StreamReader,
    decode: Decode,
    patience_s: float,
    *,
    most_s: float = math.inf,
) -> StoredVersion | None:
    """Return the newest version of what is there; nothing more is taken.

    Where messages come without end, it stops after `most_s`, but not within the first MOST_IN_A_CHUNK.
    """
    newest: StoredVersion | None = None
    bodies: list[bytes] = []
    aside_bytes = 0
    began = time.monotonic()
    for taken in count(1):
        body = reader.next_body(patience_s)
        if body is None:
            break
        patience_s = QUIET_S
        bodies.append(body)
        aside_bytes += len(body)
        if aside_bytes > MOST_BYTES_ASIDE:
            newest = _newer_of(newest, bodies, decode)
            bodies.clear()
            aside_bytes = 0
        if taken >= MOST_IN_A_CHUNK and time.monotonic() - began >= most_s:
            break
    return _newer_of(newest, bodies, decode)


def _newer_of(known: StoredVersion | None, bodies: Sequence[bytes], decode: Decode) -> StoredVersion | None:
    """Return the newest version, if it is newer than the known one, and else that one.

    Older ones are not decoded: with many workers that takes long.
    """
    if bodies:
        _require_protocol(bodies[-1])
    claims = [(rank, body) for body in bodies if (rank := _or_passed_over(claimed_rank, body))]
    for rank, body in sorted(claims, key=itemgetter(0), reverse=True):
        if known and rank <= known.version.rank:
            break
        if version := _or_passed_over(decode, body):
            return StoredVersion(version, body)
    return known


def _require_protocol(newest: bytes) -> None:
    """Raise ProtocolMismatch when the newest message is of another protocol: its successors will be too."""
    try:
        require_protocol(newest)
    except ProtocolMismatch as error:
        raise ProtocolMismatch(f"the newest version of the model cannot be read: {error}") from error
    except WireError:
        return  # no version at all, and passed over


def _or_passed_over(read: Callable[[bytes], Found], body: bytes) -> Found | None:
    try:
        return read(body)
    except WireError as error:
        # Only an aggregator or an operator can have put it there; it must not end any reader.
        log.warning("passed over a message in the stream that is no version", because=str(error))
        return None
