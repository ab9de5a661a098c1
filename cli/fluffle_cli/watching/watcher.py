"""Follows a federation from outside: its events as they come, its newest record, its queues.

It has no power over anything: it writes nothing but the queue of its own that it listens with.
"""

import secrets
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from math import inf

from fluffle.broker import Broker, Delivery, Listener
from fluffle.connection import require_federation
from fluffle.errors import AccessRefused, WireError
from fluffle.events import Report
from fluffle.logs import get_logger
from fluffle.topology import MIB, Topology
from fluffle.wire import decode_report
from fluffle_cli.watching.records import all_records, newest_record
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import FederationView, QueueStates

log = get_logger(__name__)

LOOK_EVERY_S = 1.0
# A record is read again when there is news, but reading may take a twentieth of the time at most.
READ_EVERY_S = 1.0
SHARE_OF_READING = 20
# Events may be lost, the last ones too.
READ_WITHOUT_NEWS_EVERY_S = 10.0
# Where there is no version yet.
PATIENCE_S = 0.3


class Watcher:
    """Keeps the state of one federation up to date; any thread may take a view of it."""

    def __init__(self, topology: Topology, *, name: str, past_mib: int) -> None:
        """Call the listening queue by `name`; the past is read once, if it has no more than `past_mib`."""
        self._topology = topology
        self._name = name
        self._past_bytes = past_mib * MIB
        self._lock = threading.Lock()
        self._state = FederationState(topology.federation, time.time())
        self._read_at, self._reading_s = -inf, 0.0
        self._knows_the_past = False

    def view(self) -> FederationView:
        """Return what is known at this moment."""
        with self._lock:
            return self._state.view(time.time())

    def look_once(self, broker: Broker) -> FederationView:
        """Look at the queues, read the newest record, and the past if it is small.

        Raises TopologyMissing when the federation is not on this broker.
        """
        require_federation(broker, self._topology)
        self._look_at_queues(broker)
        self._read(broker, threading.Event())
        return self.view()

    def follow(
        self,
        broker: Broker,
        stop: threading.Event,
        *,
        every_s: float = LOOK_EVERY_S,
        must_listen: bool = True,
    ) -> Generator[None]:
        """Look over one connection until `stop` is set, and yield after each look.

        Without the right to listen it raises AccessRefused if it `must_listen`, and otherwise reads the
        newest record at every look.
        """
        with ExitStack() as stack:
            # RabbitMQ may keep the last connection's queue for a while, and several may watch a federation.
            queue = f"{self._name}-{secrets.token_hex(4)}"
            listener: Listener | None = None
            try:
                listener = stack.enter_context(broker.listen(self._topology.events.name, name=queue))
            except AccessRefused as error:
                if must_listen:
                    raise
                log.warning("cannot listen to events: reading the record at every look", because=str(error))
            else:
                with self._lock:
                    self._state.listen_from(time.time())
            self._read_at = looked_at = -inf
            while not stop.is_set():
                now = time.monotonic()
                if now >= looked_at + LOOK_EVERY_S:
                    looked_at = now
                    self._look_at_queues(broker)
                if listener is None or self._is_time_to_read():
                    self._read(broker, stop)
                yield
                self._listen(listener, stop, until=now + every_s)

    def say(self, trouble: str) -> None:
        """Show what keeps this watcher from its federation; empty when nothing does."""
        with self._lock:
            self._state.trouble = trouble

    def note_aggregators(self, connected: Mapping[str, bool] | None) -> None:
        """See FederationState."""
        with self._lock:
            self._state.note_aggregators(connected)

    def _listen(self, listener: Listener | None, stop: threading.Event, *, until: float) -> None:
        while not stop.is_set() and (left_s := until - time.monotonic()) > 0:
            if listener is None:
                stop.wait(left_s)
                continue
            delivery = listener.next_delivery(left_s)
            report = delivery and believable(delivery, self._topology)
            if report:
                with self._lock:
                    self._state.hear(report, time.time())

    def _look_at_queues(self, broker: Broker) -> None:
        queues = queue_states(broker, self._topology)
        with self._lock:
            self._state.look(queues, time.time())

    def _is_time_to_read(self) -> bool:
        every_s = READ_EVERY_S if self._state.is_behind else READ_WITHOUT_NEWS_EVERY_S
        return time.monotonic() >= self._read_at + max(every_s, SHARE_OF_READING * self._reading_s)

    def _read(self, broker: Broker, stop: threading.Event) -> None:
        began = time.monotonic()
        found = newest_record(broker, self._topology, patience_s=PATIENCE_S)
        self._read_at = time.monotonic()
        if found is None:
            return
        self._reading_s = self._read_at - began
        newest, size_bytes = found
        if not self._knows_the_past and size_bytes * (newest.version + 1) <= self._past_bytes:
            for version in all_records(broker, self._topology):
                if stop.is_set():
                    return
                with self._lock:
                    self._state.read(version)
        self._knows_the_past = True
        with self._lock:
            self._state.read(newest)


def queue_states(broker: Broker, topology: Topology) -> QueueStates:
    """Look at a federation's queues."""
    updates, rejected = (broker.state(queue.name) for queue in (topology.updates, topology.rejected))
    return QueueStates(
        updates_waiting=updates.messages,
        aggregator_active=updates.consumers > 0,
        rejected_waiting=rejected.messages,
    )


def believable(delivery: Delivery, topology: Topology) -> Report | None:
    """Return what a message says, if its sender may say it: an aggregator anything, a member of itself."""
    try:
        report = decode_report(delivery.body)
    except WireError as error:
        log.debug("passed over an event that cannot be read", because=str(error), user=delivery.user)
        return None
    if report.federation != topology.federation:
        return None
    if delivery.exchange == topology.events.name:
        return report
    return report if report.role != "aggregator" and report.name == delivery.user else None
