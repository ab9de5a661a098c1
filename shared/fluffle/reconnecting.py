"""Run a part's work on a connection, and again on a new one whenever the connection is lost."""

import math
import random
import threading
import time
from collections.abc import Callable

from fluffle.broker import Broker
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    LimitReached,
    QueueFull,
    StreamUnreadable,
    TopologyMissing,
    Unroutable,
)
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.events import Left
from fluffle.logs import get_logger

log = get_logger(__name__)

# After a connection that lived for longer than this, the count of losses starts again.
GOOD_AFTER_S = 60.0
# When one lived for less than this, the broker accepted this part and then refused what it needs.
SHORT_LIFE_S = 1.0
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0

# QueueFull too: a queue that never fills raises it while too few nodes of its cluster run.
PASSING = (ConnectionLost, LimitReached, QueueFull, StreamUnreadable)


def run_with_reconnect(
    connect: Callable[[], Broker],
    work: Callable[[Broker], None],
    stop: threading.Event,
    event_sink: EventSink = NULL_SINK,
    *,
    patience_s: float = math.inf,
) -> None:
    """Run `work` on a connection until it returns; when the connection is lost, run it again on a new one.

    The first loss in a while is followed by a new connection at once; after more losses the waits grow, so
    that a broker in trouble is not flooded. When no connection has lived for a second for `patience_s`, the
    last error is raised. When a right is missing after a while, an operator may be making the user or virtual
    host again: `connect` finds out. `event_sink` publishes over the connection of the moment. Returns when
    `work` does, or when `stop` is set and the connection is lost. Errors of `connect`, and all others of
    `work`, are raised.
    """
    losses = 0
    short_since: float | None = None
    while not stop.is_set():
        try:
            broker = connect()
        except BrokerError:
            if stop.is_set():
                return
            raise
        began = time.monotonic()
        with broker, event_sink.over(broker):
            try:
                work(broker)
            except (*PASSING, AccessRefused) as error:
                if stop.is_set():
                    log.info("asked to stop", because=str(error))
                    return
                now = time.monotonic()
                losses = 0 if now - began > GOOD_AFTER_S else losses
                short_since = None if now - began > SHORT_LIFE_S else short_since or began
                if short_since is not None and isinstance(error, AccessRefused):
                    raise
                if short_since is not None and now - short_since >= patience_s:
                    log.warning("each connection was lost within a second", for_s=round(now - short_since))
                    raise
                wait_s = wait_before(losses)
                losses += 1
                log.warning("lost the broker; connecting again", because=str(error), wait_s=round(wait_s, 1))
            else:
                event_sink(Left("it was asked to stop" if stop.is_set() else "the federation has finished"))
                return
        stop.wait(wait_s)


def until_federation_is_gone(work: Callable[[Broker], None]) -> Callable[[Broker], None]:
    """Return work that raises ConnectionLost when its federation was deleted.

    For parts that do not make the federation: their next connection waits until it is there again.
    """

    def work_on(broker: Broker) -> None:
        try:
            work(broker)
        except (TopologyMissing, Unroutable) as error:
            raise ConnectionLost(f"the federation was deleted: {error}") from error

    return work_on


def wait_before(losses: int) -> float:
    """Return the seconds to wait after so many losses; random, so that not all parts come back at once."""
    if losses == 0:
        return 0.0
    longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (losses - 1))
    return random.SystemRandom().uniform(longest_s / 2, longest_s)
