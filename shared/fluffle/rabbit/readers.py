"""Receives from a stream, or what is published on an exchange, on a channel of its own."""

import functools
import queue
import time
from contextlib import closing

import pika
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.broker import Delivery
from fluffle.errors import ConnectionLost
from fluffle.rabbit.connection import RabbitConnection
from fluffle.topology import LISTENER_MAX_MESSAGES
from fluffle.transfers import LOOK_EVERY_S, Transfer

# More than heartbeats and acks come to.
NO_SILENCE_BYTES = 4096
# Of what a listener is sent: more messages wait on the broker, which drops the oldest beyond a limit.
LISTENER_PREFETCH = 64


class RabbitReader:
    """Implements StreamReader and Listener of fluffle.broker.

    It is made and closed on the connection's thread, and read from any other.
    """

    def __init__(self, connection: RabbitConnection, queue_name: str) -> None:
        self._connection = connection
        self._queue = queue_name
        self._received: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._channel = connection.new_channel()
        self._channel.add_on_cancel_callback(lambda _: self._received.put(None))

    def read_stream(self, offset: str, prefetch: int) -> None:
        """Start to read a stream."""
        self._channel.basic_qos(prefetch_count=prefetch)
        self._consume({"x-stream-offset": offset})

    def listen_to(self, exchange: str, max_bytes: int) -> None:
        """Start to receive what an exchange gets, through a queue that lasts as long as this reader."""
        limits = {"x-max-length": LISTENER_MAX_MESSAGES, "x-max-length-bytes": max_bytes}
        self._channel.queue_declare(self._queue, exclusive=True, auto_delete=True, arguments=limits)
        self._channel.queue_bind(self._queue, exchange, "#")
        self._channel.basic_qos(prefetch_count=LISTENER_PREFETCH)
        self._consume({})

    def _consume(self, arguments: dict[str, str]) -> None:
        tag = self._connection.name
        self._channel.basic_consume(self._queue, self._on_message, consumer_tag=tag, arguments=arguments)

    def next_body(self, timeout_s: float) -> bytes | None:
        delivery = self.next_delivery(timeout_s)
        return None if delivery is None else delivery.body

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        silent_since, heard_bytes = time.monotonic(), self._connection.traffic_bytes
        with closing(Transfer("receiving")) as transfer:
            while True:
                left_s = silent_since + timeout_s - time.monotonic()
                try:
                    delivery = self._received.get(timeout=max(0.0, min(LOOK_EVERY_S, left_s)))
                    break
                except queue.Empty:
                    if self._connection.failure:
                        raise self._connection.failure from None
                if not self._channel.is_open:
                    raise ConnectionLost(f"RabbitMQ closed the reader of {self._queue}")
                if self._connection.traffic_bytes - heard_bytes > NO_SILENCE_BYTES:
                    # A large model on a slow link.
                    silent_since, heard_bytes = time.monotonic(), self._connection.traffic_bytes
                elif time.monotonic() >= silent_since + timeout_s:
                    return None
                transfer.show(*self._connection.arriving(self._channel))
        if delivery is None:
            raise ConnectionLost(f"RabbitMQ ended the reader of {self._queue}: the queue was deleted")
        ack = functools.partial(self._channel.basic_ack, delivery.tag)
        self._connection.call(ack, f"queue {self._queue}")
        return delivery

    def close(self) -> None:
        """End the reading, which also deletes the queue of a listener."""
        if self._channel.is_open:
            # BlockingChannel.close would first cancel, and reject what arrives meanwhile: for that, RabbitMQ
            # 3.10 closes the whole connection. Closing the channel underneath ends the consumer all the same.
            self._channel._impl.close()
            self._channel._flush_output(lambda: self._channel.is_closed)

    def _on_message(
        self,
        _channel: BlockingChannel,
        method: pika.spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._received.put(Delivery(method.delivery_tag, body, 0, properties.user_id, method.exchange))
