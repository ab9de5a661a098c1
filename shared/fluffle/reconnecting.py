"""Working on one connection after the other: whoever loses one starts again with a new one."""

from __future__ import annotations

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

# A connection that lived for longer than this was a good one: the next loss is a new story.
GOOD_AFTER_S = 60.0
# One that lived for less than this was none: the broker let this part in, and then refused what it needs.
SHORT_LIFE_S = 1.0
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0

# QueueFull comes from queues that never fill when too few nodes of their cluster run.
PASSING = (ConnectionLost, LimitReached, QueueFull, StreamUnreadable)


def run_with_reconnect(
    connect: Callable[[], Broker],
    work: Callable[[Broker], None],
    stop: threading.Event,
    event_sink: EventSink = NULL_SINK,
    *,
    patience_s: float = math.inf,
) -> None:
    """Run `work` on a connection until it returns, anew on a new one whenever one is lost.

    A connection that is lost for the first time in a while is made anew at once. The more of them are lost
    soon after one another, the longer are the waits, so that a broker in trouble is not stormed. When for
    `patience_s` no connection has lived for a second, the last error is raised. A right that is missing
    after a while may come back, with a user or virtual host that is being made anew: `connect` finds out.
    What `event_sink` is told meanwhile goes over the connection that there is. Returns when `work` has, or
    when `stop` is set while there is no connection. What `connect` raises, such as ConnectionLost after all
    its patience, is the caller's, and so is any other error of `work`.
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
                now = time.monotonic()
                losses = 0 if now - began > GOOD_AFTER_S else losses
                short_since = None if now - began > SHORT_LIFE_S else short_since or began
                if short_since is not None and isinstance(error, AccessRefused):
                    raise
                if short_since is not None and now - short_since >= patience_s:
                    log.warning("no connection has lived for a second", for_s=round(now - short_since))
                    raise
                wait_s = wait_before(losses)
                losses += 1
                log.warning("lost the broker; connecting again", because=str(error), wait_s=round(wait_s, 1))
            else:
                event_sink(Left("it was asked to stop" if stop.is_set() else "the federation has finished"))
                return
        stop.wait(wait_s)


def until_federation_is_gone(work: Callable[[Broker], None]) -> Callable[[Broker], None]:
    """Return work that counts a federation that is gone as a lost connection.

    For whoever does not make the federation: the connection after that one is there when the federation is.
    """

    def work_on(broker: Broker) -> None:
        try:
            work(broker)
        except (TopologyMissing, Unroutable) as error:
            raise ConnectionLost(f"the federation is gone: {error}") from error

    return work_on


def wait_before(losses: int) -> float:
    """Return the seconds to wait after so many losses; with jitter, so that not all come back as one."""
    if losses == 0:
        return 0.0
    longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (losses - 1))
    return random.SystemRandom().uniform(longest_s / 2, longest_s)
