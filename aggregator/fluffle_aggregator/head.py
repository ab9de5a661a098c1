"""The head queue: the truth from which every aggregator starts, and from which the stream is rebuilt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import tenacity

from fluffle.broker import Broker
from fluffle.errors import StreamUnreadable, TopologyMissing
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.models import version_at_hand
from fluffle.record import ModelVersion, Moments, Rank
from fluffle.topology import HEAD_LENGTH, Topology
from fluffle.wire import decode_record, record_digest

log = get_logger(__name__)

UNREADABLE_FOR_S = 10.0


@dataclass(frozen=True, slots=True)
class Head:
    """The newest committed version, as it lies in the head queue.

    `term` is the highest term that anybody has published under; a new leader goes one above it.
    """

    record: ModelVersion
    moments: Mapping[str, Vector]
    digest: str
    term: int


def read_head(broker: Broker, topology: Topology) -> Head | None:
    """Return the newest committed version, None in a new federation; the stream is brought up to it.

    A stream that cannot be read, as a power cut may leave it, is made anew. Raises TopologyMissing when
    versions are in the stream, or may be, but the head queue is empty: it was deleted.
    """
    # Before the head: a leader that died while it read the head has it back by then.
    in_stream, is_readable = _newest_in_stream(broker, topology)
    records = [(decode_record(body), body) for body in broker.peek(topology.head.name)]
    versions = [(record, body) for record, body in records if isinstance(record, ModelVersion)]
    if not versions:
        if in_stream is not None:
            raise TopologyMissing(
                f"the stream {topology.models.name} holds version {in_stream.rank}, but the queue "
                f"{topology.head.name} that a leader starts from is empty: it was deleted. To go on, write "
                f"the newest version to a file (`fluffle model export --out newest.fluffle`) and put it back "
                f"(`fluffle model restore newest.fluffle`)"
            )
        if not is_readable:
            raise TopologyMissing(
                f"the stream {topology.models.name} cannot be read, and the queue {topology.head.name} is "
                f"empty: put back a version that you have kept (`fluffle model restore FILE`), or delete "
                f"both queues to begin anew"
            )
        return None
    record, body = max(versions, key=lambda version: version[0].rank)
    if not is_readable:
        log.warning("the stream cannot be read and is made anew from the head", version=record.version)
        broker.rebuild(topology)
    if in_stream is None or in_stream.rank < record.rank:
        log.warning("the stream is behind the head and gets its version again", version=record.version)
        broker.publish(topology.models_in.name, "", body, {"kind": "version"})
    moments: Mapping[str, Vector] = {}
    for other, _ in records:
        if isinstance(other, Moments) and other.rank == record.rank and record.moments_checksum is not None:
            moments = other.vectors
    if record.moments_checksum is not None and not moments:
        log.warning("the server optimizer begins anew: its moments are gone", version=record.version)
    _bring_orphans_to_the_front(broker, topology, records, record.rank)
    terms = [other.term if isinstance(other, ModelVersion) else other.rank.term for other, _ in records]
    return Head(record, moments, record_digest(body), max([*terms, in_stream.term if in_stream else 0]))


def _newest_in_stream(broker: Broker, topology: Topology) -> tuple[ModelVersion | None, bool]:
    """Return the newest version in the stream, and whether the stream can be read at all."""
    patiently = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StreamUnreadable),
        # A node that has just come up may still be opening it.
        stop=tenacity.stop_after_delay(UNREADABLE_FOR_S),
        wait=tenacity.wait_fixed(1.0),
        before_sleep=lambda attempt: log.warning(
            "the stream cannot be read; trying again",
            because=str(attempt.outcome and attempt.outcome.exception()),
        ),
        reraise=True,
    )
    try:
        return patiently(version_at_hand, broker, topology), True
    except StreamUnreadable:
        return None, False


def _bring_orphans_to_the_front(
    broker: Broker, topology: Topology, records: list[tuple[ModelVersion | Moments, bytes]], newest: Rank
) -> None:
    """Make sure that the next publish pushes out of the full queue what nobody needs.

    A leader that dies between its moments and their record leaves moments behind that belong to no record.
    A few such leaders in a row would push out the record that all start from.
    """
    waiting = deque(records)
    while (
        len(waiting) >= HEAD_LENGTH
        and waiting[0][0].rank == newest
        and any(other.rank != newest for other, _ in waiting)
    ):
        _, body = waiting[0]
        broker.publish(topology.head_in.name, "", body, {})
        waiting.rotate(-1)
