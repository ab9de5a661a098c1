"""Looking into a queue: RabbitMQ knows no such thing, so messages are taken, and given back by not acking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.errors import ConnectionLost
from fluffle.rabbit.connection import RabbitConnection
from fluffle.rabbit.faults import RESOURCE_LOCKED

AGAIN_AFTER_S = 0.5
# A frozen process keeps what it has taken until RabbitMQ misses its heartbeats.
OTHERS_HAVE_S = 60.0


@contextmanager
def peek(connection: RabbitConnection, queue: str) -> Iterator[Iterator[bytes]]:
    """Give the bodies that wait in a queue one by one; see Broker."""
    what, lock = f"queue {queue}", f"{queue}.looked-into"
    _lock(connection, lock)
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
            connection.apart(lambda apart: apart.queue_delete(lock), lock)


def _lock(connection: RabbitConnection, name: str) -> None:
    """Declare a queue that RabbitMQ keeps for this connection alone, and deletes with it."""
    give_up_at = time.monotonic() + OTHERS_HAVE_S
    while not connection.apart(lambda channel: _is_ours(channel, name), f"queue {name}"):
        if time.monotonic() > give_up_at or connection.stop.wait(AGAIN_AFTER_S):
            raise ConnectionLost(f"another process looks into the same queue, and does not end: {name}")


def _is_ours(channel: BlockingChannel, name: str) -> bool:
    try:
        channel.queue_declare(name, exclusive=True)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == RESOURCE_LOCKED:
            return False
        raise
    return True
