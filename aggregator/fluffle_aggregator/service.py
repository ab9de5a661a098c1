"""The aggregator's loop: stand by, lead, and begin again from the head when the connection is lost.

Read this first, and then leader.py. When the one channel is lost, nothing is retried: everything held is
dropped, and the next turn starts again from the head queue.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fluffle.broker import Broker
from fluffle.hello import say_hello
from fluffle.logs import get_logger
from fluffle.reconnecting import work_with_new_connections
from fluffle.record import ModelVersion
from fluffle_aggregator.charge import POLL_S, Charge
from fluffle_aggregator.head import StreamReadings
from fluffle_aggregator.leader import Leader
from fluffle_aggregator.watch import TopologyWatch

log = get_logger(__name__)

# Whoever gets no message for so long is a standby.
STANDBY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class AggregatorResult:
    """How an aggregator left its federation, and why it ended.

    `ended_by` is the reason for which the federation has finished, such as "accuracy>=0.9 held"; empty when
    the aggregator was asked to stop. `version` is the newest version that it published or took over, with the
    weights and the best evaluation; None when it never led.
    """

    ended_by: str
    version: ModelVersion | None


def serve(
    charge: Charge, connect: Callable[[], Broker], stop: threading.Event, *, patience_s: float = math.inf
) -> AggregatorResult:
    """Stand by, lead when it is this process's turn, and return when the federation has finished.

    After a lost connection it starts again from the head; any other error is the caller's. `patience_s` is
    how long connections may end within a second, one after the other.
    """
    readings = StreamReadings()
    result = AggregatorResult("", None)

    def work(broker: Broker) -> None:
        nonlocal result
        result = stand_by_and_lead(charge, broker, readings, stop)

    work_with_new_connections(connect, work, stop, charge.teller, patience_s=patience_s)
    return result


def stand_by_and_lead(
    charge: Charge, broker: Broker, readings: StreamReadings, stop: threading.Event
) -> AggregatorResult:
    """Be one aggregator for the life of one connection."""
    broker.declare(charge.topology)
    broker.consume(charge.topology.updates.name, prefetch=charge.prefetch)
    topology = charge.topology
    say_hello(broker, topology.updates_in, federation=topology.federation, name=charge.name)
    log.info("standing by", aggregator=charge.name)
    watch = TopologyWatch(broker, topology)
    delivery, began = None, time.monotonic()
    while delivery is None:
        if stop.is_set():
            return AggregatorResult("", None)
        watch.look_when_due()
        readings.look_at_head_when_due(broker, topology)
        if charge.compare and time.monotonic() - began > STANDBY_AFTER_S:
            # Else another architecture would be found only when this standby is needed.
            if layout := readings.layout_to_compare(broker, topology):
                charge.compare(layout)
            charge.look()
        # The broker gives messages to one consumer only: whoever gets the first one leads.
        delivery = broker.next_delivery(POLL_S)
    leader = Leader(charge, broker, readings)
    while True:
        if delivery is not None:
            leader.receive(delivery)
        # Its body is as large as the model: gone before the commit makes another such.
        del delivery
        leader.commit_when_due()
        watch.look_when_due()
        leader.look_after_head()
        charge.look()
        delivery = broker.next_delivery(charge.rhythm.patience_s)
        if stop.is_set():
            log.info("asked to stop: what is held goes back to the queue", updates=leader.held)
            return AggregatorResult("", leader.record)
        if leader.finished and delivery is None:
            break
    hand_over(charge, broker)
    return AggregatorResult(leader.finished, leader.record)


def hand_over(charge: Charge, broker: Broker) -> None:
    """Wake a standby after the end, so that it sees the end too and leaves."""
    topology = charge.topology
    broker.cancel()
    if broker.state(topology.updates.name).consumers:
        say_hello(broker, topology.updates_in, federation=topology.federation, name=charge.name)
