"""Waiting until a queue has no consumer: RabbitMQ takes a moment to notice that one has left."""

import time

from fluffle.broker import Broker

LEAVING_S = 5.0
POLL_S = 0.2


def is_unconsumed(broker: Broker, queue: str) -> bool:
    """Tell whether a queue has no consumer; one that is leaving has a few seconds to do so."""
    deadline = time.monotonic() + LEAVING_S
    while broker.state(queue).consumers:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
