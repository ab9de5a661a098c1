"""The Broker on RabbitMQ: the only module that knows pika.

A thread of its own owns the connection, so that heartbeats go on while the caller trains or folds: the
caller's thread never touches a socket. Calls are handed over as functions; messages come back through an
inbox. Consuming, publishing and acking share one channel (rule 4 of docs/architecture.md).
"""

from __future__ import annotations

import functools
import queue
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.broker import Delivery, QueueState
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    MessageTooLarge,
    QueueFull,
    TopologyMismatch,
    TopologyMissing,
    Unroutable,
)
from fluffle.topology import MIB, Queue, Topology

Result = TypeVar("Result")

# Beyond this many bytes that nobody has taken yet, reading from the socket pauses.
INBOX_LIMIT_BYTES = 32 * MIB
BLOCKED_TIMEOUT_S = 300.0
POLL_S = 1.0

ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 405, 406, 530


class RabbitBroker:
    """One connection to RabbitMQ; see `fluffle.broker.Broker` for what its methods promise."""

    def __init__(self, url: str, *, name: str, heartbeat_s: int) -> None:
        """Connect. `name` is what RabbitMQ's UI shows for this connection.

        Raises ConnectionLost when nothing answers (it may come later), AccessRefused when the broker does
        not let this user in, ConfigError for a URL that pika cannot read.
        """
        try:
            parameters = pika.URLParameters(url)
        except (ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"the broker's URL cannot be read: {error}") from error
        parameters.heartbeat = heartbeat_s
        parameters.blocked_connection_timeout = BLOCKED_TIMEOUT_S
        parameters.client_properties = {"connection_name": name}
        self._user = parameters.credentials.username
        self._where = f"{parameters.host}:{parameters.port} (virtual host {parameters.virtual_host!r})"
        try:
            self._connection = pika.BlockingConnection(parameters)
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        except (pika.exceptions.AMQPError, OSError, ssl.SSLError) as error:
            reason = self._translated(error)
            if isinstance(reason, ConnectionLost):
                reason = ConnectionLost(
                    f"no RabbitMQ answers at {self._where}: start it, or correct FLUFFLE_BROKER_URL ({error!r})"
                )
            raise reason from error
        self._channel.add_on_cancel_callback(self._on_cancel)
        self._commands: deque[Callable[[], None]] = deque()
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        # Two counters, each with one thread that writes it: `-=` and `+=` on one would lose counts.
        self._arrived_bytes = 0
        self._taken_bytes = 0
        self._wake = threading.Event()
        self._closing = False
        self._failure: BrokerError | None = None
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)
        self._thread.start()

    # What the caller's thread calls.

    def declare(self, topology: Topology) -> None:
        """See Broker."""
        for exchange in topology.exchanges:
            self._apart(
                functools.partial(
                    BlockingChannel.exchange_declare,
                    exchange=exchange.name,
                    exchange_type="fanout",
                    durable=True,
                ),
                f"exchange {exchange.name}",
            )
        for each in topology.queues:
            self._apart(functools.partial(_declare_queue, each), f"queue {each.name}")

    def check(self, topology: Topology) -> None:
        """See Broker."""
        self._apart(
            functools.partial(
                BlockingChannel.exchange_declare, exchange=topology.updates.exchange.name, passive=True
            ),
            f"exchange {topology.updates.exchange.name}",
        )
        self.state(topology.models.name)

    def rebuild(self, topology: Topology) -> None:
        """See Broker."""
        name = topology.models.name
        self._apart(functools.partial(BlockingChannel.queue_delete, queue=name), f"queue {name}")
        self._apart(functools.partial(_declare_queue, topology.models), f"queue {name}")

    def publish(self, exchange: str, routing_key: str, body: bytes, headers: Mapping[str, str]) -> None:
        """See Broker."""
        properties = pika.BasicProperties(
            delivery_mode=pika.DeliveryMode.Persistent,
            content_type="application/vnd.fluffle+msgpack",
            user_id=self._user,
            message_id=headers.get("id"),
            type=headers.get("kind"),
            headers=dict(headers),
        )
        send = functools.partial(
            self._channel.basic_publish, exchange, routing_key, body, properties, mandatory=True
        )
        self._call(send, f"exchange {exchange or routing_key}")

    def consume(self, queue: str, *, prefetch: int) -> None:
        """See Broker."""

        def start() -> None:
            self._channel.basic_qos(prefetch_count=prefetch)
            self._channel.basic_consume(queue, self._on_delivery)

        self._call(start, f"queue {queue}")

    def cancel(self) -> None:
        """See Broker."""

        def stop() -> None:
            for tag in self._channel.consumer_tags:
                self._channel.basic_cancel(tag)

        self._call(stop, "the consumer")

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Broker."""
        try:
            delivery = self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            if self._failure:
                raise self._failure from None
            return None
        if delivery is None:
            # For whoever asks again.
            self._inbox.put(None)
            raise self._failure or ConnectionLost("the connection is closed")
        self._taken_bytes += len(delivery.body)
        self._wake.set()
        return delivery

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        acked = tuple(tags)

        def send() -> None:
            for tag in acked:
                self._channel.basic_ack(tag)

        self._call(send, "the acks")

    def peek(self, queue: str) -> list[bytes]:
        """See Broker."""

        def take_and_return(channel: BlockingChannel) -> list[bytes]:
            bodies: list[bytes] = []
            while True:
                method, _, body = channel.basic_get(queue)
                if method is None:
                    return bodies  # closing the channel returns them, in their order
                bodies.append(body)

        return self._apart(take_and_return, f"queue {queue}")

    def state(self, queue: str) -> QueueState:
        """See Broker."""
        method = self._apart(
            functools.partial(BlockingChannel.queue_declare, queue=queue, passive=True), f"queue {queue}"
        ).method
        return QueueState(method.message_count, method.consumer_count)

    @contextmanager
    def read_stream(self, queue: str, *, offset: str) -> Iterator[_RabbitStreamReader]:
        """See Broker."""
        reader = self._call(lambda: _RabbitStreamReader(self, queue, offset), f"queue {queue}")
        try:
            yield reader
        finally:
            if self._failure is None:
                self._call(reader.close, f"queue {queue}")

    def close(self) -> None:
        """See Broker."""
        self._closing = True
        self._awake()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, function: Callable[[], Result], what: str) -> Result:
        """Run a function on the connection's thread and wait for what it gives."""
        future: Future[Result] = Future()

        def command() -> None:
            try:
                future.set_result(function())
            except (pika.exceptions.AMQPError, OSError) as error:
                future.set_exception(self._translated(error, what))
            except Exception as error:  # a mistake in the call: its caller's, while this thread goes on
                future.set_exception(error)

        self._commands.append(command)
        self._awake()
        while self._thread.is_alive() or future.done():
            with suppress(TimeoutError):
                return future.result(timeout=POLL_S)
        raise self._failure or ConnectionLost("the connection is closed")

    def _apart(self, function: Callable[[BlockingChannel], Result], what: str) -> Result:
        """Run a function on a channel of its own: an error closes that channel, and nothing else."""

        def run() -> Result:
            channel = self._connection.channel()
            try:
                return function(channel)
            finally:
                if channel.is_open:
                    channel.close()

        return self._call(run, what)

    def _awake(self) -> None:
        self._wake.set()
        # When it is closed already, the waiting call sees the thread's end.
        with suppress(pika.exceptions.ConnectionWrongStateError):
            self._connection.add_callback_threadsafe(lambda: None)

    # What the connection's thread runs.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                while self._commands:
                    self._commands.popleft()()
                if not self._channel.is_open:
                    # A consumer timeout or a missing right closes the channel without an exception here.
                    raise ConnectionLost("RabbitMQ closed the channel")
                if self._arrived_bytes - self._taken_bytes > INBOX_LIMIT_BYTES:
                    # Back-pressure through the socket; a glance once in a while keeps heartbeats going.
                    self._wake.wait(POLL_S)
                    self._connection.process_data_events(time_limit=0)
                elif not self._commands:
                    self._connection.process_data_events(time_limit=POLL_S)
                if self._failure:
                    raise self._failure
            self._connection.close()
        except BrokerError as error:
            self._failure = error
        except (pika.exceptions.AMQPError, OSError) as error:
            self._failure = self._translated(error)
        finally:
            self._failure = self._failure or ConnectionLost("the connection is closed")
            self._inbox.put(None)
            _abandon(self._connection)

    def _on_delivery(
        self,
        _channel: BlockingChannel,
        method: pika.spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        headers = properties.headers or {}
        redeliveries = int(headers.get("x-delivery-count", 0))
        self._arrived_bytes += len(body)
        self._inbox.put(Delivery(method.delivery_tag, body, redeliveries, properties.user_id, headers))

    def _on_cancel(self, method: pika.frame.Method) -> None:
        self._failure = TopologyMissing(
            f"RabbitMQ cancelled the consumer {method.method.consumer_tag}: its queue was deleted"
        )

    def _translated(self, error: Exception, what: str = "") -> BrokerError:
        """Return the error in Fluffle's words."""
        return _translated(error, where=self._where, user=self._user, what=what)


class _RabbitStreamReader:
    """Reads a stream on a channel of its own, one message in flight."""

    def __init__(self, broker: RabbitBroker, queue_name: str, offset: str) -> None:
        self._broker = broker
        self._bodies: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._channel = broker._connection.channel()
        self._channel.add_on_cancel_callback(lambda _: self._bodies.put(None))
        self._queue = queue_name
        self._channel.basic_qos(prefetch_count=1)
        self._channel.basic_consume(queue_name, self._on_body, arguments={"x-stream-offset": offset})

    def next_body(self, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = self._bodies.get(timeout=max(0.0, min(POLL_S, deadline - time.monotonic())))
            except queue.Empty:
                if self._broker._failure:
                    raise self._broker._failure from None
                if not self._channel.is_open:
                    raise ConnectionLost(f"RabbitMQ closed the reader of {self._queue}") from None
                if time.monotonic() >= deadline:
                    return None
                continue
            if found is None:
                raise ConnectionLost(f"RabbitMQ ended the reader of {self._queue}: the stream was deleted")
            tag, body = found
            self._broker._call(functools.partial(self._channel.basic_ack, tag), f"queue {self._queue}")
            return body

    def close(self) -> None:
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


def _declare_queue(each: Queue, channel: BlockingChannel) -> None:
    channel.queue_declare(each.name, durable=True, arguments=dict(each.arguments))
    channel.queue_bind(each.name, each.exchange.name)


def _abandon(connection: pika.BlockingConnection) -> None:
    """Close what may be closed already."""
    if connection.is_open:
        with suppress(pika.exceptions.AMQPError, OSError):
            connection.close()


def _translated(error: Exception, *, where: str, user: str, what: str) -> BrokerError:
    code = getattr(error, "reply_code", None)
    said = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return AccessRefused(f"RabbitMQ at {where} refused the user {user!r} or its password")
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError) or code == NOT_ALLOWED:
        return AccessRefused(
            f"RabbitMQ at {where} refused the user {user!r}: the virtual host is missing, or the user has no "
            f"right to it ({said})"
        )
    if isinstance(error, pika.exceptions.NackError):
        return QueueFull(f"RabbitMQ refused a message for {what}: its queue is full")
    if isinstance(error, pika.exceptions.UnroutableError):
        return Unroutable(f"no queue is bound to {what}: run `fluffle broker setup`")
    if code == ACCESS_REFUSED:
        return AccessRefused(f"the user {user!r} has no right to {what}: {said}")
    if code == NOT_FOUND:
        return TopologyMissing(f"{what} is not on RabbitMQ at {where}")
    if code == PRECONDITION_FAILED and "max" in said and "size" in said:
        return MessageTooLarge(
            f"RabbitMQ at {where} takes no message as large as this: set max_message_size = 536870912 in "
            f"rabbitmq.conf ({said})"
        )
    # The same code closes a channel that held a message too long, or acked one that it never had.
    if code == RESOURCE_LOCKED or (code == PRECONDITION_FAILED and "inequivalent" in said):
        return TopologyMismatch(
            f"{what} exists with other arguments: delete it, or choose another federation name ({said})"
        )
    return ConnectionLost(f"the connection to RabbitMQ at {where} is lost: {said}")
