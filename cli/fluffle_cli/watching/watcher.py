"""Follows a federation from outside: its events as they come, its newest record, its queues.

It changes nothing on RabbitMQ but the queue of its own that it listens with.
"""

import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from math import inf

from fluffle.broker import Broker, Delivery, Listener
from fluffle.connection import require_federation
from fluffle.errors import AccessRefused, TopologyMissing, WireError
from fluffle.events import Report, Role
from fluffle.logs import get_logger
from fluffle.model_stream import QUIET_S, all_records, stored_record_at_hand
from fluffle.topology import MIB, Topology
from fluffle.wire import decode_report
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import FederationView, QueueStates, Version

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

    def __init__(
        self,
        topology: Topology,
        *,
        name: str,
        past_mib: int,
        on_report: Callable[[Report], None] = lambda _: None,
    ) -> None:
        """Call the listening queue by `name`; the past is read once, if it has no more than `past_mib`.

        `on_report` is called with whatever is heard.
        """
        self._topology, self._name, self._on_report = topology, name, on_report
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
        self._read(broker, threading.Event())
        self._look_at_queues(broker)
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
        listener: Listener | None = None
        with ExitStack() as stack:
            # RabbitMQ may keep the last connection's queue for a while, and several may watch a federation.
            queue = f"{self._name}-{secrets.token_hex(4)}"
            try:
                listener = stack.enter_context(broker.listen(self._topology.events.name, name=queue))
                self._state.listen_from(time.time())
            except AccessRefused as error:
                if must_listen:
                    raise
                log.warning("cannot listen to events: reading the record at every look", because=str(error))
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
            self._state.known.trouble = trouble

    def note_process(self, role: Role, name: str, state: str) -> None:
        """See FederationState."""
        with self._lock:
            self._state.note_process(role, name, state)

    def note_aggregators(self, connected: Mapping[str, bool] | None) -> None:
        """See FederationState."""
        with self._lock:
            self._state.note_aggregators(connected)

    def _listen(self, listener: Listener | None, stop: threading.Event, *, until: float) -> None:
        """Take in what is said until a time, and at least one message if there is one."""
        while not stop.is_set():
            left_s = max(0.0, until - time.monotonic())
            if listener is None:
                stop.wait(left_s)
            elif (delivery := listener.next_delivery(left_s)) and (
                report := believable(delivery, self._topology)
            ):
                with self._lock:
                    self._state.hear(report, time.time())
                self._on_report(report)
            if time.monotonic() >= until:
                return

    def _look_at_queues(self, broker: Broker) -> None:
        updates = broker.state(self._topology.updates.name)
        queues = QueueStates(
            updates_waiting=updates.messages,
            aggregator_active=updates.consumers > 0,
            rejected_waiting=broker.state(self._topology.rejected.name).messages,
            absent_helpers=tuple(each for each in self._helpers() if not self._is_at_work(broker, each)),
        )
        with self._lock:
            self._state.look(queues, time.time())

    def _helpers(self) -> tuple[str, ...]:
        """Return the helpers of secure aggregation that have opened the last sum."""
        newest = self._state.known.newest
        return newest.last_sum.helpers if newest and newest.last_sum and not newest.finished else ()

    def _is_at_work(self, broker: Broker, helper: str) -> bool:
        try:
            return broker.state(self._topology.worker_lock(helper)).consumers > 0
        except TopologyMissing:
            return False

    def _is_time_to_read(self) -> bool:
        every_s = READ_EVERY_S if self._state.is_behind else READ_WITHOUT_NEWS_EVERY_S
        return time.monotonic() >= self._read_at + max(every_s, SHARE_OF_READING * self._reading_s)

    def _read(self, broker: Broker, stop: threading.Event) -> None:
        began = time.monotonic()
        stored = stored_record_at_hand(broker, self._topology, patience_s=PATIENCE_S)
        self._read_at = time.monotonic()
        if stored is None:
            return
        # Each reading ends with a wait for more messages, which is no work.
        self._reading_s = max(0.0, self._read_at - began - QUIET_S)
        newest = Version.of(stored.version)
        is_small = len(stored.body) * (newest.version + 1) <= self._past_bytes
        past = all_versions(broker, self._topology) if is_small and not self._knows_the_past else ()
        for version in chain(past, [newest]):
            if stop.is_set():
                return
            with self._lock:
                self._state.read(version)
        self._knows_the_past = True


def all_versions(broker: Broker, topology: Topology) -> Iterator[Version]:
    """Yield every version whose record is still there, in the order of their publication."""
    return map(Version.of, all_records(broker, topology))


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
