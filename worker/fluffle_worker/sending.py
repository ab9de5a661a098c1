"""Publishing what is in the spool."""

import threading
import time

import tenacity

from fluffle.broker import Broker
from fluffle.errors import MessageTooLarge, QueueFull
from fluffle.event_sink import EventSink
from fluffle.events import Published
from fluffle.logs import get_logger
from fluffle.message_size import require_planned_update_fits
from fluffle.record import ModelVersion
from fluffle.stopping import StopRequested
from fluffle.topology import Topology
from fluffle_worker.spool import Spool

log = get_logger(__name__)


def send_all(
    spool: Spool,
    broker: Broker,
    topology: Topology,
    version: ModelVersion,
    *,
    worker: str,
    stop: threading.Event,
    event_sink: EventSink,
) -> None:
    """Publish the updates in the spool, oldest first; each stays there until the broker confirms it.

    Waits while the updates queue is full. Raises MessageTooLarge, which names the codecs that would fit, and
    StopRequested when asked to stop.
    """
    patiently = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(QueueFull),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=lambda _: log.warning("the updates queue is full; waiting"),
        reraise=True,
    )
    while waiting := spool.oldest():
        update, body = str(waiting[0]), waiting[1]
        headers = {"kind": "update", "id": update, "worker": worker, "at": f"{time.time():.3f}"}
        try:
            patiently(broker.publish, topology.updates_in.name, "", body, headers)
        except QueueFull as error:
            raise StopRequested from error
        except MessageTooLarge as error:
            # RabbitMQ's limit is below the configured one: this error names the codecs that fit.
            require_planned_update_fits(version.layout, version.plan, error.limit_bytes)
            raise
        spool.confirm()
        event_sink(Published(len(body)))
        log.info("update published", update=update, size_bytes=len(body))
        if stop.is_set():
            raise StopRequested
