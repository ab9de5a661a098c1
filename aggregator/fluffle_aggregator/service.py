"""The aggregator's loop: stand by, lead, and begin again from the head when the connection is lost.

Read this first, and then leader.py. When the one channel is lost, nothing is retried: everything held is
dropped, and the next turn starts again from the head queue.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from fluffle.broker import Broker, Delivery
from fluffle.connection import say_hello
from fluffle.logs import get_logger
from fluffle.reconnecting import run_with_reconnect
from fluffle.record import ModelVersion
from fluffle.secure.closing import Finished, encode_finished
from fluffle_aggregator.commit_schedule import POLL_S
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth
from fluffle_aggregator.leading import Leading
from fluffle_aggregator.topology_watch import TopologyWatch

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
    join(config, broker)
    watch = TopologyWatch(broker, config.topology)
    delivery = stand_by(config, broker, watch, stream_health, stop)
    if delivery is None:
        return AggregatorResult("", None)
    with closing(Leading(config, broker, stream_health)) as leading:
        while delivery is not None or not leading.finished:
            if delivery is not None:
                leading.take_in(delivery)
            # Its body is as large as the model: released before a commit makes another such.
            del delivery
            leading.tick()
            watch.look_when_due()
            config.require_same_model()
            config.look_at_registry()
            delivery = leading.next_delivery(config.commit_schedule.patience_s)
            if stop.is_set():
                log.info("asked to stop: unacknowledged updates return to the queue", updates=leading.held)
                return AggregatorResult("", leading.record)
    tell_helpers(config, broker, leading.finished)
    wake_standby(config, broker)
    return AggregatorResult(leading.finished, leading.record)


def join(config: AggregatorConfig, broker: Broker) -> None:
    """Ask for updates, and send a hello after them: whoever gets a first message leads."""
    topology = config.topology
    broker.declare(topology)
    broker.consume(topology.updates.name, prefetch=config.prefetch)
    say_hello(broker, topology.updates_in, federation=topology.federation, name=config.name)
    log.info("standing by", aggregator=config.name)


def stand_by(
    config: AggregatorConfig,
    broker: Broker,
    watch: TopologyWatch,
    stream_health: StreamHealth,
    stop: threading.Event,
) -> Delivery | None:
    """Wait for the first message and return it; None when asked to stop."""
    began = time.monotonic()
    while not stop.is_set():
        watch.look_when_due()
        stream_health.look_at_head_when_due(broker, config.topology)
        if config.compare and time.monotonic() - began > STANDBY_AFTER_S:
            # Otherwise another architecture or promise would be found only when this standby is needed.
            if record := stream_health.record_to_compare(broker, config.topology):
                config.compare(record)
            config.require_same_model()
        if delivery := broker.next_delivery(POLL_S):
            return delivery
    return None


def tell_helpers(config: AggregatorConfig, broker: Broker, because: str) -> None:
    """Tell the helpers of secure aggregation, if there are any, that the federation has finished."""
    if config.committee:
        body = encode_finished(Finished(because=because))
        broker.publish(config.topology.closes_in.name, "", body, {"kind": "finished"})


def wake_standby(config: AggregatorConfig, broker: Broker) -> None:
    """Wake a standby after the end, so that it sees the end too and leaves."""
    topology = config.topology
    broker.cancel()
    if broker.state(topology.updates.name).consumers:
        say_hello(broker, topology.updates_in, federation=topology.federation, name=config.name)
