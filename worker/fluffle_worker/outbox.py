"""From a trained update to a confirmed message: compress, spool, and publish until it is confirmed."""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import tenacity

from fluffle.broker import Broker
from fluffle.compression import compress, leaves_out
from fluffle.errors import QueueFull
from fluffle.event_sink import EventSink
from fluffle.events import Published
from fluffle.logs import get_logger
from fluffle.stopping import StopRequested
from fluffle.topology import Topology
from fluffle.update import AppliedUpdates
from fluffle_worker.feedback import compress_with_feedback
from fluffle_worker.round import TrainedUpdate
from fluffle_worker.spool import NoRoomForResidual, Spool

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Outbox:
    """The updates of one worker on their way to the broker."""

    worker: str
    spool: Spool
    topology: Topology
    stop: threading.Event
    event_sink: EventSink

    def add(self, trained: TrainedUpdate, applied: AppliedUpdates, *, seed: int) -> None:
        """Compress an update and put it into the spool; `applied` is of the newest version."""
        update, spool = trained.update, self.spool
        random = np.random.default_rng([seed, update.id.sequence, 1])
        if update.sends == "delta" and (leaves_out(update.codec) or spool.has_residual):
            try:
                made = compress_with_feedback(spool, applied, update.codec, trained.vector, random)
                spool.add(replace(update, vector=made.vector, absorbs=made.absorbs), made.residual)
            except NoRoomForResidual as error:
                log.warning("the disk is full: what the codec left out is lost", because=str(error))
            else:
                return
        spool.add(replace(update, vector=compress(update.codec, trained.vector, random)))

    def send_all(self, broker: Broker) -> None:
        """Publish the updates in the spool, oldest first; each stays there until the broker confirms it."""
        while waiting := self.spool.oldest():
            update_id, body = waiting
            self._publish(broker, str(update_id), body)
            self.spool.confirm()
            self.event_sink(Published(len(body)))
            log.info("update published", update=str(update_id), size_bytes=len(body))
            if self.stop.is_set():
                raise StopRequested

    def _publish(self, broker: Broker, update: str, body: bytes) -> None:
        """Publish one message, and wait while the queue is full."""
        headers = {"kind": "update", "id": update, "worker": self.worker, "at": f"{time.time():.3f}"}
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(QueueFull),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
            stop=tenacity.stop_when_event_set(self.stop),
            sleep=tenacity.sleep_using_event(self.stop),
            before_sleep=lambda _: log.warning("the updates queue is full; waiting", update=update),
            reraise=True,
        )
        try:
            patiently(broker.publish, self.topology.updates_in.name, "", body, headers)
        except QueueFull as error:
            raise StopRequested from error
