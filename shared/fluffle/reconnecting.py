"""Working on one connection after the other: whoever loses one starts again with a new one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, QueueFull
from fluffle.logs import get_logger

log = get_logger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


def work_with_new_connections(
    connect: Callable[[], Broker], work: Callable[[Broker], None], stop: threading.Event
) -> None:
    """Run `work` on a connection until it returns, anew on a new one whenever one is lost.

    Returns when `work` has, or when `stop` is set while there is no connection. What `connect` raises, such
    as ConnectionLost after all its patience, is the caller's, and so is any other error of `work`.
    """
    longest_pause_s = FIRST_PAUSE_S
    while not stop.is_set():
        try:
            broker = connect()
        except ConnectionLost:
            if stop.is_set():
                return
            raise
        connected = time.monotonic()
        with broker:
            try:
                work(broker)
            except (ConnectionLost, QueueFull) as error:
                # QueueFull comes here from queues that never fill: too few nodes of their cluster run.
                log.warning("lost the broker; connecting again", because=str(error))
            else:
                return
        # A broker that lets us in may yet have nothing for us: a cluster whose queues are not up again.
        if time.monotonic() - connected > LONGEST_PAUSE_S:
            longest_pause_s = FIRST_PAUSE_S
        stop.wait(random.SystemRandom().uniform(0, longest_pause_s))
        longest_pause_s = min(2 * longest_pause_s, LONGEST_PAUSE_S)
