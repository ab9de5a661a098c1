"""Reading versions of the model from the federation's stream, as workers, evaluators and people do."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeVar

from fluffle.broker import Broker, StreamReader
from fluffle.errors import ProtocolMismatch, TopologyMissing, WireError
from fluffle.logs import get_logger
from fluffle.record import ModelVersion, Rank
from fluffle.topology import MIB, Topology
from fluffle.wire import claimed_rank, decode_version, record_digest, require_protocol

log = get_logger(__name__)

POLL_S = 0.5
# "last" means the last chunk of the stream, which may hold several versions and has no mark of its end.
QUIET_S = 0.05
# More than a chunk was seen to hold. What comes behind is made while it is read, and that may never end.
MOST_IN_A_CHUNK = 32
# Beyond so many bytes only the newest of what was received is kept.
MOST_BYTES_ASIDE = 16 * MIB
# So long nothing comes, not even a part of a large model on a slow link, if there is nothing.
NOTHING_THERE_S = 2.0
SLOW_LINK_S = 10.0
# How often whoever waits for a newer version says so.
SAY_EVERY_S = 60.0

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class StoredVersion:
    """A version, and the message that it was read from: all that a successor of the aggregator needs.

    But where versions travel in another codec than float32, it may be a rounded copy.
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
            newest = _newest_at_hand(reader, POLL_S, most=MOST_IN_A_CHUNK)
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
    """Return the newest version that is there now, or None when the stream is empty.

    For whoever may look at the head queue too.
    """
    stored = stored_at_hand(broker, topology)
    return stored.version if stored else None


def stored_at_hand(
    broker: Broker, topology: Topology, *, patience_s: float = NOTHING_THERE_S
) -> StoredVersion | None:
    """Return the same as `version_at_hand`, with its message.

    Nothing tells how much is in a stream. Where there is a head there should be a model, however slowly a
    large one comes over the network; where there is none, `patience_s` says how long to look.
    """
    if _messages_in(broker, topology.head.name):
        patience_s = SLOW_LINK_S
    with broker.read_stream(topology.models.name, offset="last") as reader:
        return _newest_at_hand(reader, patience_s)


def all_versions(broker: Broker, topology: Topology) -> Iterator[ModelVersion]:
    """Yield every version that the stream still holds, in the order of their publication.

    For whoever may look at the head queue too.
    """
    for stored in all_stored(broker, topology):
        yield stored.version


def all_stored(broker: Broker, topology: Topology) -> Iterator[StoredVersion]:
    """Yield the same as `all_versions`, with their messages.

    Versions of a term lower than one that was seen before come from an aggregator that has lost the lead:
    they are left out.
    """
    newest = version_at_hand(broker, topology)
    highest_term = 0
    with broker.read_stream(topology.models.name, offset="first") as reader:
        while newest and (body := reader.next_body(SLOW_LINK_S)) is not None:
            version = _readable(body)
            if version and version.term >= highest_term:
                highest_term = version.term
                yield StoredVersion(version, body)
            if version and version.rank >= newest.rank:
                return


def _messages_in(broker: Broker, queue: str) -> int:
    try:
        return broker.state(queue).messages
    except TopologyMissing:
        return 0  # somebody deleted it: what is in the stream is to be seen all the same


def _newest_at_hand(
    reader: StreamReader, timeout_s: float, *, most: int = sys.maxsize
) -> StoredVersion | None:
    """Return the newest of what is there, or of the first `most` messages; nothing more is taken."""
    newest: StoredVersion | None = None
    bodies: list[bytes] = []
    patience_s = timeout_s
    for _ in range(most):
        body = reader.next_body(patience_s)
        if body is None:
            break
        patience_s = QUIET_S
        bodies.append(body)
        if sum(map(len, bodies)) > MOST_BYTES_ASIDE:
            newest = _newer_of(newest, bodies)
            bodies.clear()
    return _newer_of(newest, bodies)


def _newer_of(known: StoredVersion | None, bodies: Sequence[bytes]) -> StoredVersion | None:
    """Return the newest version, if it is newer than the one that is known, and else that one.

    Older ones are not read: with many workers that takes long.
    """
    if bodies:
        _require_protocol(bodies[-1])
    claims = [(rank, body) for body in bodies if (rank := _rank_of(body))]
    for rank, body in sorted(claims, key=itemgetter(0), reverse=True):
        if known and rank <= known.version.rank:
            break
        if version := _readable(body):
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


def _rank_of(body: bytes) -> Rank | None:
    return _or_passed_over(claimed_rank, body)


def _readable(body: bytes) -> ModelVersion | None:
    return _or_passed_over(decode_version, body)


def _or_passed_over(read: Callable[[bytes], Found], body: bytes) -> Found | None:
    try:
        return read(body)
    except WireError as error:
        # Only an aggregator or an operator can have put it there; no reader is to end of it.
        log.warning("passed over a message in the stream that is no version", because=str(error))
        return None
