"""Follows a federation from outside: its events as they come, its newest record now and then, its queues.

One more reader, without power over anything: it writes nothing but the queue of its own that it listens with.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from math import inf

from fluffle.broker import Broker, Delivery, Listener
from fluffle.connection import federation_connector
from fluffle.errors import BrokerError, FluffleError, WireError
from fluffle.events import Report
from fluffle.logs import get_logger
from fluffle.management import ManagementSettings
from fluffle.model_stream import all_records, stored_record_at_hand
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.topology import MIB, Topology, topology_of
from fluffle.wire import decode_report
from fluffle_cli.dashboard.consumers import watch_consumers
from fluffle_cli.dashboard.state import FederationState
from fluffle_cli.dashboard.table import Wanted
from fluffle_cli.snapshot import QueueStates

log = get_logger(__name__)

LOOK_EVERY_S = 1.0
# A record is read again when there is news, but not all the time: reading may take a twentieth of it.
READ_EVERY_S = 2.0
SHARE_OF_READING = 20
# Where there is no model yet.
PATIENCE_S = 0.3
# Events may be lost, the last ones too.
READ_WITHOUT_NEWS_EVERY_S = 60.0
# The past is read once, if it is no more than this.
PAST_BYTES = 64 * MIB


class Watch:
    """Keeps the state of one federation up to date; any thread may look at it."""

    def __init__(self, settings: ManagementSettings, stop: threading.Event) -> None:
        """Watch as `settings` say, until `stop` is set."""
        self._settings = settings
        self._stop = stop
        self._topology = topology_of(settings.federation)
        self._lock = threading.Lock()
        self._state = FederationState(settings.federation, time.time())
        self._read_at, self._reading_s = -inf, 0.0
        self._knows_the_past = False
        self._asks_for_consumers = False
        # Whoever looks on may come before the federation does.
        self._connector = federation_connector(
            settings.model_copy(update={"connect_timeout_s": inf}),
            self._topology,
            name=f"{settings.federation}/dashboard",
            stop=stop,
            on_wait=self._say,
        )

    def run(self) -> None:
        """Follow until `stop` is set, with new connections as they are lost.

        It waits for a broker or a federation that is not there. Raises LoginRefused or AccessRefused when the
        broker does not let this user in, or not listen.
        """
        try:
            work = until_federation_is_gone(self._follow)
            run_with_reconnect(self._connector.connect, work, self._stop)
        except FluffleError as error:
            # Beside a demo the page is still there.
            self._say(str(error))
            raise

    def picture(self) -> dict[str, object]:
        """Return all but the workers."""
        with self._lock:
            return self._state.picture(time.time())

    def page(self, wanted: Wanted) -> dict[str, object]:
        """Return one page of the workers. Raises KeyError for an unknown column."""
        with self._lock:
            return self._state.page(wanted, time.time())

    def _follow(self, broker: Broker) -> None:
        if not self._asks_for_consumers:
            # Not before: there is a queue only now.
            self._asks_for_consumers = True
            arguments = (self._settings, self._topology, self._note_aggregators, self._stop)
            threading.Thread(target=watch_consumers, args=arguments, name="consumers", daemon=True).start()
        try:
            # Several pages may be open on one federation.
            with broker.listen(
                self._topology.events.name, name=f"dashboard-{secrets.token_hex(4)}"
            ) as listener:
                self._read_at = -inf
                if not self._knows_the_past:
                    with self._lock:
                        self._state.begin_to_listen(time.time())
                self._look(broker)
                self._read(broker)
                self._say("")
                looked_at = time.monotonic()
                while not self._stop.is_set():
                    self._listen(listener, until=looked_at + LOOK_EVERY_S)
                    looked_at = time.monotonic()
                    self._look(broker)
                    if self._is_time_to_read():
                        self._read(broker)
        except BrokerError as error:
            self._say(str(error))
            raise

    def _listen(self, listener: Listener, *, until: float) -> None:
        while not self._stop.is_set() and (left_s := until - time.monotonic()) > 0:
            delivery = listener.next_delivery(left_s)
            report = delivery and believable(delivery, self._topology)
            if report:
                with self._lock:
                    self._state.hear(report, time.time())

    def _look(self, broker: Broker) -> None:
        updates, rejected = (
            broker.state(queue.name) for queue in (self._topology.updates, self._topology.rejected)
        )
        queues = QueueStates(
            updates_waiting=updates.messages,
            aggregator_active=updates.consumers > 0,
            rejected_waiting=rejected.messages,
        )
        with self._lock:
            self._state.look(queues, time.time())

    def _is_time_to_read(self) -> bool:
        since_s = time.monotonic() - self._read_at
        every_s = READ_EVERY_S if self._state.known.is_behind else READ_WITHOUT_NEWS_EVERY_S
        return since_s >= max(every_s, SHARE_OF_READING * self._reading_s)

    def _read(self, broker: Broker) -> None:
        began = time.monotonic()
        stored = stored_record_at_hand(broker, self._topology, patience_s=PATIENCE_S)
        self._read_at = time.monotonic()
        if stored is None:
            return
        self._reading_s = self._read_at - began
        if not self._knows_the_past:
            self._knows_the_past = True
            if len(stored.body) * (stored.version.version + 1) <= PAST_BYTES:
                self._read_the_past(broker)
        with self._lock:
            self._state.read(stored.version)

    def _read_the_past(self, broker: Broker) -> None:
        for version in all_records(broker, self._topology):
            if self._stop.is_set():
                return
            with self._lock:
                self._state.remember(version)
                self._state.read(version)

    def _note_aggregators(self, connected: Mapping[str, bool] | None) -> None:
        with self._lock:
            self._state.note_aggregators(connected)

    def _say(self, trouble: str) -> None:
        with self._lock:
            self._state.trouble = trouble


def believable(delivery: Delivery, topology: Topology) -> Report | None:
    """Return what a message tells, if its sender may say it: an aggregator anything, a member of itself."""
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
