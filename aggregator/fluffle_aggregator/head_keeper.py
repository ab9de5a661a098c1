"""What a leader publishes to the head queue and the stream of records, and whether it is still there.

RabbitMQ confirms a message that a policy deletes a moment later, and tells nobody. So the leader counts what
it has put into the head, and looks now and then whether as much is left. It looks over a second connection,
and between two commits, so that no message of its own is on its way. What is gone it publishes again over its
one channel: an aggregator that has lost the lead can look, but can publish nothing.
"""

import time
from collections.abc import Callable, Sequence

from fluffle.broker import Broker
from fluffle.framing import record_digest
from fluffle.logs import get_logger
from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import checksum_of, moments_pieces, version_pieces
from fluffle.secure.sums import SumRecord, sum_pieces
from fluffle.topology import HEAD_LENGTH, Topology
from fluffle_aggregator.head import (
    RECORDS_IN_A_ROW_S,
    ReadFailures,
    bring_records_up_to_date,
    publish_version,
    version_headers,
)

log = get_logger(__name__)

EVERY_S = 10.0
# Somebody may be looking into the queue: a loss is seen twice in a row.
AGAIN_AFTER_S = 2.0
# Where messages vanish again and again, the model is not published every 10 s for nothing.
AT_MOST_EVERY_S = 60.0
LOOK_AT_RECORDS_EVERY_S = 60.0
WHAT_TO_DO = (
    "messages vanish from the queue {head}. A policy deletes them (message-ttl, expires, max-length, "
    "max-length-bytes or delivery-limit), or somebody has purged the queue. What such a policy deletes of "
    "the updates is lost. Find it with `rabbitmqctl list_policies -p VHOST` and `list_operator_policies`, or "
    "with `fluffle status` as a user who may ask RabbitMQ's management interface, and keep it off this "
    "federation's queues"
)


class HeadKeeper:
    """Publishes versions for one leader, and notices what vanishes from the head or the stream of records."""

    def __init__(
        self,
        broker: Broker,
        topology: Topology,
        downlink_codec: str,
        *,
        messages: int,
        sums: Sequence[SumRecord] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin when the head has this many messages, and perhaps sums that wait to be opened."""
        self._sums = list(sums)
        self._broker = broker
        self._topology = topology
        self._downlink_codec = downlink_codec
        self._clock = clock
        self._expected = min(HEAD_LENGTH, messages)
        self._was_low = False
        self._every_s = EVERY_S
        self._due_at = clock() + EVERY_S
        self._record_failures = ReadFailures(clock, in_a_row_s=RECORDS_IN_A_ROW_S)
        self._records_looked_at = clock() + EVERY_S - LOOK_AT_RECORDS_EVERY_S

    def publish_moments(self, moments: MomentsRecord) -> None:
        """Publish a strategy's moments, before the record that names them."""
        # To the head alone: the workers have no use for it.
        self._broker.publish(self._topology.head_in.name, "", moments_pieces(moments), {"kind": "moments"})
        self._count()

    def publish_sum(self, record: SumRecord) -> None:
        """Publish a sum that waits to be opened, from which the next leader goes on."""
        self._broker.publish(self._topology.head_in.name, "", sum_pieces(record), {"kind": "sum"})
        self._sums.append(record)
        self._count()

    def publish(self, record: ModelVersion) -> str:
        """Publish a version's record to head and streams, and return its digest."""
        digest = publish_version(self._broker, self._topology, record, self._downlink_codec)
        self._sums = [each for each in self._sums if each.close.version > record.version]
        self._count()
        return digest

    def is_whole_when_due(
        self, record: ModelVersion, moments_at: Callable[[Rank], MomentsRecord], digest: str
    ) -> bool:
        """Look if it is time to, and put the newest version back when messages have vanished.

        `moments_at` gives the leader's moments of now under a rank. `digest` is that of its record as it was
        published, and only the very same bytes are published again. False when they are no longer to be had,
        since the leader has gone on from them: then a new version has to take their place.
        """
        self._look_at_records_when_due(record, digest)
        return not self._is_short_when_due() or self._put_back(record, moments_at, digest)

    def _look_at_records_when_due(self, record: ModelVersion, digest: str) -> None:
        every_s = LOOK_AT_RECORDS_EVERY_S if self._record_failures.are_none else EVERY_S
        if self._clock() < self._records_looked_at + every_s:
            return
        self._records_looked_at = self._clock()

        def body() -> bytes | None:
            start = version_pieces(record).start
            # If the leader has made steps since, its next commit brings a record.
            return start if record_digest(start) == digest else None

        bring_records_up_to_date(self._broker, self._topology, record.rank, body, self._record_failures)

    def _is_short_when_due(self) -> bool:
        if self._clock() < self._due_at:
            return False
        found = self._broker.state(self._topology.head.name).messages
        is_low = found < self._expected
        is_loss = is_low and self._was_low and (found > 0 or self._is_empty())
        self._was_low = is_low and not is_loss
        if is_loss:
            log.warning(
                "the head has lost messages",
                found=found,
                published=self._expected,
                because=WHAT_TO_DO.format(head=self._topology.head.name),
            )
            self._expected = found
            self._every_s = min(2 * self._every_s, AT_MOST_EVERY_S)
        elif not is_low:
            self._every_s = EVERY_S
        self._due_at = self._clock() + (AGAIN_AFTER_S if self._was_low else self._every_s)
        return is_loss

    def _is_empty(self) -> bool:
        """Try to take a message: a queue without a majority of its nodes counts 0, but gives no answer."""
        with self._broker.peek(self._topology.head.name) as bodies:
            return next(bodies, None) is None

    def _put_back(
        self, record: ModelVersion, moments_at: Callable[[Rank], MomentsRecord], digest: str
    ) -> bool:
        body = version_pieces(record)
        if record_digest(body) != digest:
            return False
        beside = moments_at(record.rank)
        if record.moments_checksum is not None and record.moments_checksum == checksum_of(beside):
            self.publish_moments(beside)
        self._broker.publish(self._topology.head_in.name, "", body, version_headers(record))
        self._count()
        sums, self._sums = self._sums, []
        for each in sums:
            self.publish_sum(each)
        log.warning("put the newest version back into the head", version=record.version, term=record.term)
        return True

    def _count(self) -> None:
        self._expected = min(HEAD_LENGTH, self._expected + 1)
