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
from fluffle.reconnecting import run_with_reconnect
from fluffle.record import ModelVersion
from fluffle_aggregator.config import POLL_S, AggregatorConfig
from fluffle_aggregator.head import StreamHealth
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
    config: AggregatorConfig,
    connect: Callable[[], Broker],
    stop: threading.Event,
    *,
    patience_s: float = math.inf,
) -> AggregatorResult:
    """Stand by, lead when it is this process's turn, and return when the federation has finished.

    After a lost connection it starts again from the head; any other error is the caller's. `patience_s` is
    how long connections may end within a second, one after the other.
    """
    stream_health = StreamHealth()
    result = AggregatorResult("", None)

    def work(broker: Broker) -> None:
        nonlocal result
        result = stand_by_and_lead(config, broker, stream_health, stop)

    run_with_reconnect(connect, work, stop, config.event_sink, patience_s=patience_s)
    return result


def stand_by_and_lead(
    config: AggregatorConfig, broker: Broker, stream_health: StreamHealth, stop: threading.Event
) -> AggregatorResult:
    """Be one aggregator for the life of one connection."""
    broker.declare(config.topology)
    broker.consume(config.topology.updates.name, prefetch=config.prefetch)
    topology = config.topology
    say_hello(broker, topology.updates_in, federation=topology.federation, name=config.name)
    log.info("standing by", aggregator=config.name)
    watch = TopologyWatch(broker, topology)
    delivery, began = None, time.monotonic()
    while delivery is None:
        if stop.is_set():
            return AggregatorResult("", None)
        watch.look_when_due()
        stream_health.look_at_head_when_due(broker, topology)
        if config.compare and time.monotonic() - began > STANDBY_AFTER_S:
            # Else another architecture would be found only when this standby is needed.
            if layout := stream_health.layout_to_compare(broker, topology):
                config.compare(layout)
            config.look()
        # The broker gives messages to one consumer only: whoever gets the first one leads.
        delivery = broker.next_delivery(POLL_S)
    leader = Leader(config, broker, stream_health)
    while True:
        if delivery is not None:
            leader.receive(delivery)
        # Its body is as large as the model: gone before the commit makes another such.
        del delivery
        leader.commit_when_due()
        watch.look_when_due()
        leader.look_after_head()
        config.look()
        delivery = broker.next_delivery(config.commit_schedule.patience_s)
        if stop.is_set():
            log.info("asked to stop: what is held goes back to the queue", updates=leader.held)
            return AggregatorResult("", leader.record)
        if leader.finished and delivery is None:
            break
    wake_standby(config, broker)
    return AggregatorResult(leader.finished, leader.record)


def wake_standby(config: AggregatorConfig, broker: Broker) -> None:
    """Wake a standby after the end, so that it sees the end too and leaves."""
    topology = config.topology
    broker.cancel()
    if broker.state(topology.updates.name).consumers:
        say_hello(broker, topology.updates_in, federation=topology.federation, name=config.name)
