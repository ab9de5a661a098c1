"""Training while the broker cannot be reached."""

import threading
import time
from collections.abc import Callable

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, TopologyMissing
from fluffle.logs import get_logger
from fluffle.reconnecting import wait_before
from fluffle.record import ModelVersion
from fluffle.stopping import StopRequested
from fluffle_worker.base_version import BaseVersion
from fluffle_worker.spool import Spool

log = get_logger(__name__)

Connect = Callable[[], Broker]


def train_until_connected(
    try_to_connect: Connect,
    base: BaseVersion,
    train: Callable[[ModelVersion], None],
    *,
    stop: threading.Event,
    spool: Spool,
) -> Broker | None:
    """Train from the last version until a connection succeeds.

    None when there is no version to train from, when the federation is missing, or in synchronous rounds,
    where a second update for the same version would be refused: then the caller waits for the broker.
    """
    attempts, next_attempt = 0, time.monotonic()
    while base.last and not base.last.plan.one_update_per_version:
        if time.monotonic() >= next_attempt:
            try:
                return try_to_connect()
            except TopologyMissing:
                return None
            except ConnectionLost as error:
                if stop.is_set():
                    raise
                attempts += 1
                next_attempt = time.monotonic() + wait_before(attempts)
                log.warning("training without the broker", because=str(error), waiting=spool.waiting)
        if not base.is_ahead():
            train(base.last)
            if base.is_ahead():
                log.info(
                    "enough updates are in flight: waiting for the broker", in_flight=len(base.in_flight)
                )
        elif stop.wait(max(0.0, next_attempt - time.monotonic())):
            raise StopRequested
    return None
