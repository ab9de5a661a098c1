"""Looking into a queue: RabbitMQ knows no such thing, so messages are taken, and given back by not acking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pika.adapters.blocking_connection import BlockingChannel

from fluffle.errors import ConnectionLost
from fluffle.rabbit.connection import RabbitConnection
from fluffle.rabbit.sole_consumer import becomes_sole_consumer
from fluffle.topology import looked_into

AGAIN_AFTER_S = 0.5
# A frozen process keeps what it has taken until RabbitMQ misses its heartbeats.
OTHERS_HAVE_S = 60.0


@contextmanager
def peek(connection: RabbitConnection, queue: str) -> Iterator[Iterator[bytes]]:
    """Give the bodies that wait in a queue one by one; see Broker."""
    what = f"queue {queue}"
    lock = _lock(connection, looked_into(queue))
    channel = connection.call(connection.new_channel, what)

    def take() -> bytes | None:
        body: bytes | None = channel.basic_get(queue)[2]
        return body

    try:
        yield iter(lambda: connection.call(take, what), None)
    finally:
        if connection.failure is None:
            # Closing the channel gives the messages back, in their order.
            connection.call(lambda: channel.is_open and channel.close(), what)
            connection.call(lambda: lock.is_open and lock.close(), what)


def _lock(connection: RabbitConnection, name: str) -> BlockingChannel:
    """Wait until nobody else looks into the queue, and return the channel that keeps others out."""
    give_up_at = time.monotonic() + OTHERS_HAVE_S

    def locked() -> BlockingChannel | None:
        channel = connection.new_channel()
        return channel if becomes_sole_consumer(channel, name) else None

    while (lock := connection.call(locked, f"queue {name}")) is None:
        if time.monotonic() > give_up_at or connection.stop.wait(AGAIN_AFTER_S):
            raise ConnectionLost(f"another process looks into the same queue, and does not end: {name}")
    return lock
