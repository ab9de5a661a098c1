"""A queue as a lock: its exclusive consumer holds it, and loses it with the connection.

An exclusive queue would be simpler. But when its virtual host crashes, RabbitMQ 3.10 and 4.0 keep it for
ever, and no other connection can use or delete it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.errors import ConnectionLost
from fluffle.rabbit.connection import RabbitConnection
from fluffle.topology import Argument, looked_into

# Deletes what a process left that died before it consumed.
UNUSED_EXPIRES_MS = 60_000
# RabbitMQ has the same codes for a missing right (403) and for a queue whose node is down (404).
IN_USE, VANISHED = "in exclusive use", "NOT_FOUND - no queue"
RETRY_EVERY_S = 0.5
# A frozen process keeps a lock until RabbitMQ misses its heartbeats.
LOCK_TIMEOUT_S = 60.0


def declare_temporary(channel: BlockingChannel, queue: str, arguments: Mapping[str, Argument]) -> None:
    """Declare a queue that is deleted with its last consumer."""
    # Durable, since RabbitMQ is giving up transient queues that are not exclusive.
    usual = {"x-queue-type": "classic", "x-expires": UNUSED_EXPIRES_MS}
    channel.queue_declare(queue, durable=True, auto_delete=True, arguments={**usual, **arguments})


def try_to_lock(
    channel: BlockingChannel, queue: str, *, on_cancel: Callable[[object], None] = lambda _: None
) -> bool:
    """Try to become the exclusive consumer of a queue, until the channel is closed.

    False when another connection is, or was until this moment; then the channel is closed. `on_cancel` is
    called when RabbitMQ ends the consumer, because the queue was deleted or its node went down.
    """
    try:
        declare_temporary(channel, queue, {})
        channel.add_on_cancel_callback(on_cancel)
        channel.basic_consume(queue, lambda *_: None, exclusive=True)
    except pika.exceptions.ChannelClosedByBroker as error:
        if IN_USE in error.reply_text or VANISHED in error.reply_text:
            return False
        raise
    return True


@contextmanager
def peek(connection: RabbitConnection, queue: str) -> Iterator[Iterator[bytes]]:
    """See Broker. RabbitMQ cannot peek: the messages are taken, and return when the channel is closed."""
    what = f"queue {queue}"
    lock = _wait_for_lock(connection, looked_into(queue))
    channel = connection.call(connection.new_channel, what)

    def take() -> bytes | None:
        body: bytes | None = channel.basic_get(queue)[2]
        return body

    try:
        yield iter(lambda: connection.call(take, what), None)
    finally:
        if connection.failure is None:
            # The messages return in order, before another process gets the lock.
            connection.call(lambda: channel.is_open and channel.close(), what)
            connection.call(lambda: lock.is_open and lock.close(), what)


def _wait_for_lock(connection: RabbitConnection, name: str) -> BlockingChannel:
    """Wait until no other process holds the lock, and return the channel that now does."""
    give_up_at = time.monotonic() + LOCK_TIMEOUT_S

    def locked() -> BlockingChannel | None:
        channel = connection.new_channel()
        return channel if try_to_lock(channel, name) else None

    while (lock := connection.call(locked, f"queue {name}")) is None:
        if time.monotonic() > give_up_at or connection.stop.wait(RETRY_EVERY_S):
            raise ConnectionLost(f"another process reads the same queue and does not finish: {name}")
    return lock
