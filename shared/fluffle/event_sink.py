"""Publishes the events of this process, without ever delaying its work."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from fluffle.broker import Broker
from fluffle.errors import FluffleError
from fluffle.events import MAX_EVENTS, Event, Happened, Joined, Report, Role
from fluffle.logs import get_logger
from fluffle.topology import Topology
from fluffle.wire import encode_report

log = get_logger(__name__)

SEND_EVERY_S = 0.25
# While there is no connection, at most this many events wait; then the oldest are dropped.
MAX_WAITING = 4 * MAX_EVENTS


class EventSink(Protocol):
    """Takes the events of this process."""

    def __call__(self, event: Event) -> None:
        """Take an event, within microseconds."""

    def over(self, broker: Broker) -> AbstractContextManager[object]:
        """Publish over this connection while the block lasts."""


class Sinks:
    """Gives each event to several sinks, or to none."""

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        for sink in self._sinks:
            sink(event)

    @contextmanager
    def over(self, broker: Broker) -> Iterator[None]:
        """See EventSink."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink.over(broker))
            yield


NULL_SINK = Sinks()


class ReportingSink:
    """Publishes events as reports, from a thread of its own."""

    def __init__(self, topology: Topology, *, role: Role, name: str) -> None:
        """Report in the name of one part of the federation."""
        self._exchange = (topology.events if role == "aggregator" else topology.member_events_in).name
        self._federation, self._name = topology.federation, name
        self._role: Role = role
        self._waiting: deque[Happened] = deque(maxlen=MAX_WAITING)

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        self._waiting.append(Happened(time.time(), event))

    @contextmanager
    def over(self, broker: Broker) -> Iterator[None]:
        """See EventSink."""
        self(Joined())
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(SEND_EVERY_S):
                self._send(broker)

        thread = threading.Thread(target=run, name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._send(broker)

    def _send(self, broker: Broker) -> None:
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(MAX_EVENTS, len(self._waiting)))]
            try:
                body = encode_report(Report(self._federation, self._role, self._name, tuple(some)))
            except FluffleError as error:
                log.warning("some events could not be published", events=len(some), because=str(error))
            else:
                broker.publish_unconfirmed(self._exchange, f"{self._role}.{self._name}", body)
