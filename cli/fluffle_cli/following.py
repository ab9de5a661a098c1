"""The newest version's record, read again only when there is a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf

from fluffle.broker import Broker, Delivery, Listener
from fluffle.errors import AccessRefused, WireError
from fluffle.events import Committed
from fluffle.logs import get_logger
from fluffle.model_stream import record_at_hand
from fluffle.record import ModelVersion
from fluffle.topology import LISTENER_MAX_MESSAGES, Topology
from fluffle.wire import decode_report

log = get_logger(__name__)

READ_AT_MOST_EVERY_S = 1.0
# What is told may be lost.
READ_AT_LEAST_EVERY_S = 10.0


class VersionFollower:
    """What one reader knows of the newest version; without a listener it reads at every look."""

    def __init__(
        self,
        broker: Broker,
        topology: Topology,
        listener: Listener | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._topology = topology
        self._listener = listener
        self._clock = clock
        self._newest: ModelVersion | None = None
        self._is_behind = True
        self._read_at = -inf

    def newest(self) -> ModelVersion | None:
        """Return the newest version, without its vector, or None when there is none yet."""
        waited_s = self._clock() - self._read_at
        self._is_behind |= self._hears_of_a_version() or waited_s >= READ_AT_LEAST_EVERY_S
        if self._is_behind and (self._listener is None or waited_s >= READ_AT_MOST_EVERY_S):
            self._newest = record_at_hand(self._broker, self._topology)
            self._read_at = self._clock()
            self._is_behind = self._listener is None
        return self._newest

    def _hears_of_a_version(self) -> bool:
        if self._listener is None:
            return False
        found = False
        # Never without end: there is always more where much happens.
        for _ in range(LISTENER_MAX_MESSAGES):
            delivery = self._listener.next_delivery(0.0)
            if delivery is None:
                break
            found |= self._tells_of_a_version(delivery)
        return found

    def _tells_of_a_version(self, delivery: Delivery) -> bool:
        if delivery.exchange != self._topology.events.name:
            return False  # a worker's or an evaluator's
        try:
            report = decode_report(delivery.body)
        except WireError:
            return False
        return any(isinstance(each.event, Committed) for each in report.events)


@contextmanager
def following(broker: Broker, topology: Topology, *, name: str) -> Iterator[VersionFollower]:
    """Follow the newest version over one connection; `name` is that of the queue to listen with.

    Whoever has no right to listen reads the newest version at every look instead.
    """
    with ExitStack() as stack:
        listener = None
        try:
            listener = stack.enter_context(broker.listen(topology.events.name, name=name))
        except AccessRefused as error:
            log.warning("nobody tells of new versions: reading its record at every look", because=str(error))
        yield VersionFollower(broker, topology, listener)
