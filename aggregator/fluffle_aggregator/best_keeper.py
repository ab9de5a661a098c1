"""Keeps the best version: once `F.models` is about to lose it, it is copied to the stream `F.best`.

While the model still improves, each best version is soon replaced by the next, and nothing is copied. The
best version lies in `F.models` until about a gigabyte of newer ones follows it. So it is copied when half of
that has followed. A thread reads it, over the connection for reading, and the leader publishes it between two
commits. It costs one more publish for each half gigabyte of versions, at most.

RabbitMQ never confirms what is published to a stream that a power cut has broken. So the leader first looks,
in the background, whether `F.best` can be read, and recreates it when it stays broken.
"""

import math
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, FluffleError, TopologyMissing, WireError
from fluffle.logs import get_logger
from fluffle.model_stream import NOTHING_THERE_S, SLOW_LINK_S
from fluffle.record import ModelVersion, is_in_history
from fluffle.record_wire import claimed_rank
from fluffle.topology import STREAM_MAX_BYTES, STREAM_SEGMENT_BYTES, Topology
from fluffle_aggregator.head import ReadFailures

log = get_logger(__name__)

AT_RISK_BYTES: Final = STREAM_MAX_BYTES // 2
# RabbitMQ's clock and this machine's need not agree, and a chunk of the stream holds several versions.
MARGIN_S: Final = 60.0
# After an error the next try waits.
AGAIN_AFTER_S: Final = 60.0
# How long a look at `F.best` takes, and how long the next one waits when the stream could not be read.
LOOK_S: Final = 3.0
LOOK_AGAIN_S: Final = 10.0
LOOKS_IN_A_ROW_S: Final = 180.0
MOST_KNOWN: Final = 10_000


@dataclass(slots=True)
class _Reading:
    """A best version that is being read: `body` is its message, None until it is there."""

    version: int
    body: bytes | None = None
    has_ended: bool = False


class BestKeeper:
    """Watches, for one leader, how far the best version lies behind in the stream of models.

    `kept` is the version that it has kept last, None before.
    """

    def __init__(
        self,
        broker: Broker,
        topology: Topology,
        *,
        at_risk_bytes: int = AT_RISK_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with a leader: how much follows a best version from before its time is not known."""
        self._broker = broker
        self._topology = topology
        self._at_risk_bytes = at_risk_bytes
        self._clock = clock
        self._published_bytes = 0
        # Of each version of this leader: what was published with and before it, and when.
        self._known: dict[int, tuple[int, float]] = {}
        self.kept: int | None = None
        self._reading: _Reading | None = None
        self._try_at = -math.inf
        self._can_be_read = False
        self._failures = ReadFailures(clock, in_a_row_s=LOOKS_IN_A_ROW_S)

    def note_published(self, record: ModelVersion) -> None:
        """Note a version that was published to the stream of models."""
        self._published_bytes += record.payload_size_bytes
        self._known[record.version] = self._published_bytes, self._clock()
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def keep_when_due(self, record: ModelVersion) -> None:
        """Copy the best version of the newest record if it is about to be lost; to be called now and then."""
        if self._reading:
            self._publish_when_read(self._reading, record)
            return
        best = record.best.version if record.best else self.kept
        if best is None or best == self.kept or not self._is_at_risk(best, record):
            return
        if self._takes_more():
            self._begin_to_read(best)

    def _is_at_risk(self, best: int, record: ModelVersion) -> bool:
        # Before the leader's time half of what makes a leader copy it may have followed.
        before, _ = self._known.get(best, (-self._at_risk_bytes // 2, 0.0))
        followed = self._published_bytes - before
        room = STREAM_MAX_BYTES - STREAM_SEGMENT_BYTES - 3 * record.payload_size_bytes
        is_due = followed >= self._at_risk_bytes or 0 < followed > room
        return is_due and self._clock() >= self._try_at

    def _takes_more(self) -> bool:
        """Return whether the stream of the best version is known to be sound; look at it where it is not."""
        if not self._can_be_read:
            self._try_at = self._clock() + (LOOK_S if self._failures.are_none else LOOK_AGAIN_S)
            self._broker.in_background(self._look)
        return self._can_be_read

    def _look(self, background: Broker) -> None:
        stream = self._topology.best
        if self._failures.are_final:
            log.warning("recreating the stream of the best version, which cannot be read", stream=stream.name)
            background.recreate_stream(stream)
            self._failures.forget()
        try:
            with self._failures.counting(), background.read_stream(stream.name, offset="last") as reader:
                reader.next_body(NOTHING_THERE_S)
        except TopologyMissing:
            return  # somebody has just deleted it: TopologyWatch says so
        self._can_be_read = True

    def _begin_to_read(self, version: int) -> None:
        known = self._known.get(version)
        offset = "first" if known is None else f"{math.ceil(self._clock() - known[1] + MARGIN_S)}s"
        self._reading = _Reading(version)
        # The fields of this thread's log lines are those of the other as well.
        run = partial(copy_context().run, self._read, self._reading, offset)
        threading.Thread(target=run, name="best-version", daemon=True).start()

    def _read(self, reading: _Reading, offset: str) -> None:
        try:
            with self._broker.read_stream(self._topology.models.name, offset=offset) as reader:
                while (body := reader.next_body(SLOW_LINK_S)) is not None:
                    try:
                        rank = claimed_rank(body)
                    except WireError:
                        continue  # whoever reads it as a version says so
                    if rank.version == reading.version:
                        reading.body = body
                    if rank.version > reading.version:
                        break
        except ConnectionLost:
            pass  # the leader learns of it when it publishes
        except FluffleError as error:
            log.warning("cannot read the best version, to keep it", because=str(error))
        finally:
            reading.has_ended = True

    def _publish_when_read(self, reading: _Reading, record: ModelVersion) -> None:
        if not reading.has_ended:
            return
        self._reading = None
        if reading.body is None:
            self._try_at = self._clock() + AGAIN_AFTER_S
            stream = self._topology.models.name
            log.warning("the best version is no longer in the stream", version=reading.version, stream=stream)
            return
        # A version of a leader that lost the lead may have the same number.
        if is_in_history(claimed_rank(reading.body), record.terms, record.version):
            headers = {"kind": "version", "id": f"{record.federation}/best/{reading.version}"}
            self._broker.publish(self._topology.best_in.name, "", reading.body, headers)
            log.info("the best version is kept", version=reading.version, stream=self._topology.best.name)
        self.kept = reading.version
