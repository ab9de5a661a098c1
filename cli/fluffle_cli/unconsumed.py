"""Waiting until nobody consumes a queue: RabbitMQ takes a moment to notice that somebody has left."""

from __future__ import annotations

import time

from fluffle.broker import Broker

LEAVING_S = 5.0
POLL_S = 0.2


def is_unconsumed(broker: Broker, queue: str) -> bool:
    """Tell whether nobody consumes a queue; whoever is leaving has a few seconds to be gone."""
    deadline = time.monotonic() + LEAVING_S
    while broker.state(queue).consumers:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
