"""What one RabbitMQ user after the other tries on a real node, with a client of its own."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.topology import Queue
from fluffle_cli.node import BrokerNode

PASSWORD = "of-these-tests"
REFUSED, NOT_WITH_THIS_QUEUE = 403, 405

Operation = Callable[[BlockingChannel], object]


@dataclass
class Logins:
    """A connection for each user, opened when it is needed."""

    node: BrokerNode
    stack: ExitStack
    open: dict[str, pika.BlockingConnection] = field(default_factory=dict)

    def url(self, user: str) -> str:
        """Where a user connects."""
        return f"amqp://{user}:{PASSWORD}@127.0.0.1:{self.node.amqp_port}/%2F"

    def may(self, user: str, operation: Operation) -> bool:
        """Try an operation; False when RabbitMQ refuses it for want of rights, and for nothing else.

        Who has the right to get from F.updates hears that it has a single active consumer: rights come first.
        """
        if user not in self.open:
            # No heartbeats: nobody answers them between two operations; RabbitMQ would close the connection.
            connection = pika.BlockingConnection(pika.URLParameters(f"{self.url(user)}?heartbeat=0"))
            self.open[user] = self.stack.enter_context(connection)
        channel = self.open[user].channel()
        channel.confirm_delivery()
        try:
            operation(channel)
        except pika.exceptions.ChannelClosedByBroker as refusal:
            if refusal.reply_code not in {REFUSED, NOT_WITH_THIS_QUEUE}:
                raise
            return bool(refusal.reply_code != REFUSED)
        channel.close()
        return True


def publishes(exchange: str, key: str = "", properties: pika.BasicProperties | None = None) -> Operation:
    """Publish, and wait for the confirm: a refusal that nobody waits for is not seen."""
    return lambda channel: channel.basic_publish(exchange, key, b"body", properties)


def declares(queue: str, **arguments: str | int | bool) -> Operation:
    """Declare a durable queue."""
    return lambda channel: channel.queue_declare(
        queue, durable=True, arguments={name.replace("_", "-"): value for name, value in arguments.items()}
    )


def declares_exchange(exchange: str, kind: str = "fanout", **arguments: str | int | bool) -> Operation:
    """Declare a durable exchange."""
    return lambda channel: channel.exchange_declare(
        exchange,
        kind,
        durable=True,
        arguments={name.replace("_", "-"): value for name, value in arguments.items()},
    )


def looks_at(queue: str) -> Operation:
    """Declare passively, which tells how many messages wait."""
    return lambda channel: channel.queue_declare(queue, passive=True)


def binds(queue: str, exchange: str, key: str = "one-more") -> Operation:
    """Bind a queue to an exchange."""
    return lambda channel: channel.queue_bind(queue, exchange, key)


def unbinds(queue: str, exchange: str, key: str = "one-more") -> Operation:
    """Unbind a queue from an exchange."""
    return lambda channel: channel.queue_unbind(queue, exchange, key)


def joins(destination: str, source: str) -> Operation:
    """Bind an exchange to another one."""
    return lambda channel: channel.exchange_bind(destination, source, "one-more")


def parts(destination: str, source: str) -> Operation:
    """Unbind an exchange from another one."""
    return lambda channel: channel.exchange_unbind(destination, source, "one-more")


def gets(queue: str) -> Operation:
    """Take a message, which goes back when the channel closes."""
    return lambda channel: channel.basic_get(queue)


def consumes(queue: Queue) -> Operation:
    """Become a consumer; of a stream, for what comes from now on, since 3.10 dislikes to take one back."""
    is_stream = queue.arguments["x-queue-type"] == "stream"

    def consume(channel: BlockingChannel) -> None:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(
            queue.name, lambda *_: None, arguments={"x-stream-offset": "next"} if is_stream else None
        )

    return consume


def purges(queue: str) -> Operation:
    """Throw away what waits."""
    return lambda channel: channel.queue_purge(queue)


def deletes(queue: str) -> Operation:
    """Delete a queue."""
    return lambda channel: channel.queue_delete(queue)


def deletes_exchange(exchange: str) -> Operation:
    """Delete an exchange."""
    return lambda channel: channel.exchange_delete(exchange)
