"""Receives what is published on an exchange, through a queue that lasts as long as the listener."""

import functools
import queue
import time

import pika
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.broker import Delivery
from fluffle.errors import ConnectionLost
from fluffle.rabbit.connection import RabbitConnection
from fluffle.topology import LISTENER_MAX_BYTES, LISTENER_MAX_MESSAGES

POLL_S = 1.0
# More messages wait on the broker, which drops the oldest beyond a limit.
PREFETCH = 64


class RabbitListener:
    """See fluffle.broker.Listener. Made and closed on the connection's thread, and read from another."""

    def __init__(self, connection: RabbitConnection, exchange: str, queue_name: str) -> None:
        self._connection = connection
        self._received: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._channel = connection.new_channel()
        self._queue = queue_name
        limits = {"x-max-length": LISTENER_MAX_MESSAGES, "x-max-length-bytes": LISTENER_MAX_BYTES}
        self._channel.queue_declare(queue_name, exclusive=True, auto_delete=True, arguments=limits)
        self._channel.queue_bind(queue_name, exchange, "#")
        self._channel.basic_qos(prefetch_count=PREFETCH)
        self._channel.basic_consume(queue_name, self._on_message, consumer_tag=connection.name)

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Listener."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            left_s = give_up_at - time.monotonic()
            try:
                delivery = self._received.get(timeout=max(0.0, min(POLL_S, left_s)))
            except queue.Empty:
                if self._connection.failure:
                    raise self._connection.failure from None
                if not self._channel.is_open:
                    raise ConnectionLost(f"RabbitMQ closed the queue {self._queue}") from None
                if time.monotonic() >= give_up_at:
                    return None
                continue
            self._connection.call(
                functools.partial(self._channel.basic_ack, delivery.tag), f"queue {self._queue}"
            )
            return delivery

    def close(self) -> None:
        """Close the channel, which deletes the queue."""
        if self._channel.is_open:
            self._channel.close()

    def _on_message(
        self,
        _channel: BlockingChannel,
        method: pika.spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._received.put(Delivery(method.delivery_tag, body, 0, properties.user_id, method.exchange))
