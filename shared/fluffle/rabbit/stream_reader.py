"""Reads a stream on a channel of its own."""

import functools
import queue
import time

import pika
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.errors import ConnectionLost
from fluffle.rabbit.connection import RabbitConnection
from fluffle.transfers import LOOK_EVERY_S, Transfer

# More than heartbeats and acks come to.
NO_SILENCE_BYTES = 4096


class RabbitStreamReader:
    """Keeps the contract of fluffle.broker.StreamReader.

    It is made and closed on the connection's thread, and read from any other.
    """

    def __init__(self, connection: RabbitConnection, queue_name: str, offset: str, prefetch: int) -> None:
        self._connection = connection
        self._bodies: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._channel = connection.new_channel()
        self._channel.add_on_cancel_callback(lambda _: self._bodies.put(None))
        self._queue = queue_name
        self._channel.basic_qos(prefetch_count=prefetch)
        self._channel.basic_consume(
            queue_name, self._on_body, consumer_tag=connection.name, arguments={"x-stream-offset": offset}
        )

    def next_body(self, timeout_s: float) -> bytes | None:
        """See StreamReader."""
        with Transfer("receiving") as transfer:
            return self._next_body(timeout_s, transfer)

    def _next_body(self, timeout_s: float, transfer: Transfer) -> bytes | None:
        silent_since, heard_bytes = time.monotonic(), self._connection.traffic_bytes
        while True:
            try:
                left_s = silent_since + timeout_s - time.monotonic()
                found = self._bodies.get(timeout=max(0.0, min(LOOK_EVERY_S, left_s)))
            except queue.Empty:
                if self._connection.failure:
                    raise self._connection.failure from None
                if not self._channel.is_open:
                    raise ConnectionLost(f"RabbitMQ closed the reader of {self._queue}") from None
                if self._connection.traffic_bytes - heard_bytes > NO_SILENCE_BYTES:
                    # A large model on a slow link.
                    silent_since, heard_bytes = time.monotonic(), self._connection.traffic_bytes
                elif time.monotonic() >= silent_since + timeout_s:
                    return None
                transfer.show(*self._connection.arriving(self._channel))
                continue
            if found is None:
                raise ConnectionLost(f"RabbitMQ ended the reader of {self._queue}: the stream was deleted")
            tag, body = found
            self._connection.call(functools.partial(self._channel.basic_ack, tag), f"queue {self._queue}")
            return body

    def close(self) -> None:
        """End the reading."""
        if not self._channel.is_open:
            return
        # BlockingChannel.close would first cancel, and reject what arrives meanwhile: for that, RabbitMQ 3.10
        # closes the whole connection. Closing the channel underneath ends the consumer all the same.
        self._channel._impl.close()
        self._channel._flush_output(lambda: self._channel.is_closed)

    def _on_body(
        self,
        _channel: BlockingChannel,
        method: pika.spec.Basic.Deliver,
        _properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._bodies.put((method.delivery_tag, body))
