"""A queue as a lock: whoever is its exclusive consumer has it, and loses it with the connection.

An exclusive queue would seem to be made for that. But RabbitMQ, 3.10 and 4.0 alike, keeps one for ever when
its virtual host dies under it: nobody but the connection that is gone could use or delete it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.topology import Argument

# What a process that died in the middle has left.
UNUSED_EXPIRES_MS = 60_000
# RabbitMQ's codes do not tell these from a missing right (403) and from a queue whose node is down (404).
IN_USE, VANISHED = "in exclusive use", "NOT_FOUND - no queue"


def declare_for_now(channel: BlockingChannel, queue: str, arguments: Mapping[str, Argument]) -> None:
    """Declare a queue that goes with its last consumer."""
    # Durable, since RabbitMQ is giving up transient queues that are not exclusive.
    usual = {"x-queue-type": "classic", "x-expires": UNUSED_EXPIRES_MS}
    channel.queue_declare(queue, durable=True, auto_delete=True, arguments={**usual, **arguments})


def becomes_sole_consumer(
    channel: BlockingChannel, queue: str, *, on_cancel: Callable[[object], None] = lambda _: None
) -> bool:
    """Declare a queue and consume it alone, as long as the channel is open.

    False when somebody else does, or did until this moment; the channel is closed then. `on_cancel` is called
    when RabbitMQ ends it, as it does when the queue is deleted or its node goes down.
    """
    try:
        declare_for_now(channel, queue, {})
        channel.add_on_cancel_callback(on_cancel)
        channel.basic_consume(queue, lambda *_: None, exclusive=True)
    except pika.exceptions.ChannelClosedByBroker as error:
        if IN_USE in error.reply_text or VANISHED in error.reply_text:
            return False
        raise
    return True
