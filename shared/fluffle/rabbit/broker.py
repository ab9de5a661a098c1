"""RabbitBroker: consuming, publishing and acking on one channel (rule 4 of docs/architecture.md).

A consumer inspects queues and reads the stream over a second connection: on the first one, answers wait
behind the deliveries that were not taken yet, and reading pauses when too many of those have come.
"""

import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import pika
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.address import BrokerAddress
from fluffle.broker import Broker, Delivery, QueueState
from fluffle.errors import (
    BrokerError,
    ConfigError,
    ConnectionLost,
    FluffleError,
    LoginRefused,
    QueueFull,
    TopologyMissing,
)
from fluffle.logs import get_logger
from fluffle.message_size import require_message_fits
from fluffle.pieces import Body
from fluffle.rabbit.acked_tags import AckedTags
from fluffle.rabbit.connection import RabbitConnection
from fluffle.rabbit.locks import peek
from fluffle.rabbit.readers import RabbitReader
from fluffle.rabbit.worker_name import WorkerName
from fluffle.topology import LISTENER_MAX_BYTES, MAX_MESSAGE_BYTES, MIB, Exchange, Queue, Topology
from fluffle.transfers import Transfer

log = get_logger(__name__)

# While more bytes of bodies than this are not released, reading from the socket pauses.
INBOX_LIMIT_BYTES = 32 * MIB
# A channel of RabbitMQ has at most 32 commands to a quorum queue unanswered, and holds back the others.
ACKS_AT_ONCE = 16
CONTENT_TYPE = "application/vnd.fluffle+msgpack"
# Redeliveries that are assumed when the header x-delivery-count is missing.
ASSUMED_REDELIVERIES = 2


class RabbitBroker(Broker):
    """One connection to RabbitMQ; see `fluffle.broker.Broker` for what its methods promise."""

    def __init__(
        self,
        address: str | BrokerAddress,
        *,
        name: str,
        heartbeat_s: int,
        speaks_for: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        stop: threading.Event | None = None,
    ) -> None:
        """Connect. `name` is what RabbitMQ's UI shows; an address may be a URL.

        `speaks_for` is the worker or evaluator in whose name this connection publishes; None means the user
        of the connection. RabbitMQ allows no other name, unless the user has the tag `impersonator`.
        A message of more than `max_message_bytes` is refused before it is sent.
        Soon after `stop` is set, calls that RabbitMQ does not answer raise ConnectionLost.

        Raises the errors of RabbitConnection.
        """
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._speaks_for = speaks_for
        self._max_message_bytes = max_message_bytes
        self._arriving = Transfer("receiving")
        # Each counter is written by one thread alone: `+=` and `-=` on a shared one would lose counts.
        self._arrived_bytes = 0
        self._released_bytes = 0
        self._delivered_bytes = 0
        self._acked = AckedTags()
        self._connection = RabbitConnection(
            address,
            name=name,
            heartbeat_s=heartbeat_s,
            is_full=self._is_full,
            on_end=lambda: self._inbox.put(None),
            stop=stop,
        )
        self._reading = self._connection
        self._connect_to_read = functools.partial(
            RabbitConnection, address, name=f"{name}/reads", heartbeat_s=heartbeat_s, stop=stop
        )
        self._connect_for_job = functools.partial(
            RabbitBroker, address, name=f"{name}/background", heartbeat_s=heartbeat_s, stop=stop
        )
        self._background: threading.Thread | None = None
        self._channel = self._connection.channel
        self._connection.call(lambda: self._channel.add_on_cancel_callback(self._on_cancel), "the channel")

    @property
    def server(self) -> str:
        """The broker's product and version, such as RabbitMQ 4.0.5."""
        return self._connection.server

    @property
    def failure(self) -> BrokerError | None:
        """Why the connection has ended, or None while it lasts."""
        return self._connection.failure

    def declare(self, topology: Topology) -> None:
        for exchange in topology.exchanges:
            self._connection.on_own_channel(
                functools.partial(_declare_exchange, exchange), f"exchange {exchange.name}"
            )
        for each in topology.queues:
            self._connection.on_own_channel(functools.partial(_declare_queue, each), f"queue {each.name}")

    def check(self, topology: Topology) -> None:

        def look(channel: BlockingChannel) -> None:
            for exchange in topology.exchanges:
                channel.exchange_declare(exchange.name, passive=True)
            for each in topology.queues:
                channel.queue_declare(each.name, passive=True)

        self._reading.on_own_channel(look, f"the federation {topology.federation!r}")

    def recreate_stream(self, stream: Queue) -> None:
        for change in (
            functools.partial(BlockingChannel.queue_delete, queue=stream.name),
            functools.partial(_declare_queue, stream),
        ):
            self._connection.on_own_channel(change, f"queue {stream.name}")

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        try:
            self.publish_as(self._speaks_for or self._connection.user, exchange, routing_key, body, headers)
        except QueueFull:
            self._renew_channel()
            raise

    def _renew_channel(self) -> None:
        """Publish over a new channel from now on, unless this one consumes.

        RabbitMQ 3.10 has a fault (in rabbit_fifo_client): a channel whose first publish to a quorum queue
        comes just after the queue's leader died refuses all messages as long as it exists.
        """

        def renew() -> BlockingChannel:
            if not self._channel.consumer_tags:
                self._connection.renew_channel()
                self._connection.channel.add_on_cancel_callback(self._on_cancel)
            return self._connection.channel

        self._channel = self._connection.call(renew, "the channel")

    def publish_as(
        self, user: str, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]
    ) -> None:
        require_message_fits(f"this {headers.get('kind', 'message')}", len(body), self._max_message_bytes)
        properties = pika.BasicProperties(
            delivery_mode=pika.DeliveryMode.Persistent,
            content_type=CONTENT_TYPE,
            user_id=user or None,
            message_id=headers.get("id"),
            type=headers.get("kind"),
            headers=dict(headers),
        )
        send = functools.partial(
            self._channel.basic_publish, exchange, routing_key, body, properties, mandatory=True
        )
        self._connection.call(send, f"exchange {exchange or routing_key}", size_bytes=len(body))

    def publish_unconfirmed(
        self, exchange: str, routing_key: str, body: bytes, *, kind: str = "events"
    ) -> None:
        properties = pika.BasicProperties(
            content_type=CONTENT_TYPE,
            user_id=self._speaks_for or self._connection.user or None,
            type=kind,
        )
        self._connection.publish_unconfirmed(
            lambda channel: channel.basic_publish(exchange, routing_key, body, properties)
        )

    def listen(
        self, exchange: str, *, name: str, max_bytes: int = LISTENER_MAX_BYTES
    ) -> AbstractContextManager[RabbitReader]:
        return self._reader(f"{exchange}.{name}", lambda reader: reader.listen_to(exchange, max_bytes))

    def consume(self, queue: str, *, prefetch: int) -> None:

        def start() -> None:
            self._channel.basic_qos(prefetch_count=prefetch)
            # Without pika's queue of events in between, which ends a turn of the thread for each message.
            self._channel._on_consumer_message_delivery = self._on_delivery
            self._channel.basic_consume(queue, self._on_delivery, consumer_tag=self._connection.name)

        self._connection.call(start, f"queue {queue}")
        if self._reading is self._connection:
            try:
                self._reading = self._connect_to_read()
            except (LoginRefused, ConfigError) as error:
                # The first connection was accepted: a password or a certificate is being replaced.
                raise ConnectionLost(f"the second connection was refused: {error}") from error

    def take_name(
        self, topology: Topology, worker: str, *, label: str, on_rival: Callable[[str], None]
    ) -> None:
        WorkerName(self._connection, topology, worker, label=label, on_rival=on_rival).take()

    def cancel(self) -> None:

        def stop() -> None:
            for tag in self._channel.consumer_tags:
                self._channel.basic_cancel(tag)

        self._connection.call(stop, "the consumer")

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        self._release_last_delivery()
        try:
            delivery = self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            if self._connection.failure:
                raise self._connection.failure from None
            self._arriving.show(*self._connection.arriving(self._channel))
            return None
        self._arriving.close()
        if delivery is None:
            # For the next call.
            self._inbox.put(None)
            raise self._connection.failure or ConnectionLost("the connection is closed")
        self._delivered_bytes = len(delivery.body)
        return delivery

    def ack(self, tags: Iterable[int]) -> None:
        acks = self._acked.adding(tags)

        def send() -> None:
            for tag, multiple in acks:
                self._channel.basic_ack(tag, multiple=multiple)

        # RabbitMQ does not answer to acks, and reads them before what is sent later.
        self._connection.post(send)

    def give_back(self, tags: Iterable[int]) -> None:
        returned = sorted(tags)
        # From now on an ack of all tags below may pass over these.
        self._acked.adding(returned)

        def send() -> None:
            for tag in returned:
                self._channel.basic_nack(tag, requeue=True)

        self._connection.post(send)

    def settle(self, queue: str, tags: Iterable[int]) -> None:
        left = list(tags)

        def send() -> None:
            for tag in left[:ACKS_AT_ONCE]:
                self._channel.basic_ack(tag)
            # The queue answers this after it has processed those acks.
            self._channel.basic_get(queue)

        while left:
            self._connection.call(send, f"queue {queue}")
            del left[:ACKS_AT_ONCE]

    def peek(self, queue: str) -> AbstractContextManager[Iterator[bytes]]:
        return peek(self._reading, queue)

    def state(self, queue: str) -> QueueState:
        method = self._reading.on_own_channel(
            functools.partial(BlockingChannel.queue_declare, queue=queue, passive=True), f"queue {queue}"
        ).method
        return QueueState(method.message_count, method.consumer_count)

    def read_stream(
        self, queue: str, *, offset: str, prefetch: int = 1
    ) -> AbstractContextManager[RabbitReader]:
        return self._reader(queue, lambda reader: reader.read_stream(offset, prefetch))

    @contextmanager
    def _reader(self, queue: str, start: Callable[[RabbitReader], None]) -> Iterator[RabbitReader]:
        """Make a reader on the connection's thread, and close it there."""
        connection, what = self._reading, f"queue {queue}"

        def begin() -> RabbitReader:
            reader = RabbitReader(connection, queue)
            start(reader)
            return reader

        reader = connection.call(begin, what)
        try:
            yield reader
        finally:
            if connection.failure is None:
                connection.call(reader.close, what)

    def in_background(self, job: Callable[[Broker], None]) -> None:

        def run() -> None:
            try:
                with self._connect_for_job() as broker:
                    job(broker)
            except FluffleError as error:
                log.warning("a look at the broker in the background failed", because=str(error))

        if self._background is None or not self._background.is_alive():
            self._background = threading.Thread(target=run, name="background", daemon=True)
            self._background.start()

    def close(self) -> None:
        self._arriving.close()
        self._connection.close()
        self._reading.close()

    def _release_last_delivery(self) -> None:
        """Count the body of the last delivery as released, and read on if reading has paused."""
        released_before = self._released_bytes
        self._released_bytes += self._delivered_bytes
        self._delivered_bytes = 0
        # After the release: the reading thread either sees it, or its bytes are counted here.
        was_full = self._arrived_bytes - released_before > INBOX_LIMIT_BYTES
        if was_full and not self._is_full():
            self._connection.wake()

    def _is_full(self) -> bool:
        return self._arrived_bytes - self._released_bytes > INBOX_LIMIT_BYTES

    def _on_delivery(
        self,
        _channel: BlockingChannel,
        method: pika.spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._arrived_bytes += len(body)
        if self._is_full():
            self._connection.end_turn()
        self._inbox.put(
            Delivery(
                method.delivery_tag,
                body,
                _redeliveries(method, properties),
                properties.user_id,
                method.exchange,
                properties.headers or {},
            )
        )

    def _on_cancel(self, method: pika.frame.Method) -> None:
        self._connection.failure = TopologyMissing(
            f"RabbitMQ cancelled the consumer {method.method.consumer_tag}: its queue was deleted, by "
            "`fluffle federation delete` or `reset` or by hand. Start it again to go on"
        )


def _declare_exchange(each: Exchange, channel: BlockingChannel) -> None:
    arguments = dict(each.arguments)
    channel.exchange_declare(each.name, exchange_type=each.kind, durable=True, arguments=arguments)
    for source in each.sources:
        channel.exchange_bind(each.name, source.name, "#")


def _declare_queue(each: Queue, channel: BlockingChannel) -> None:
    channel.queue_declare(each.name, durable=True, arguments=dict(each.arguments))
    for exchange in each.exchanges:
        channel.queue_bind(each.name, exchange.name)


def _redeliveries(method: pika.spec.Basic.Deliver, properties: pika.BasicProperties) -> int:
    """Return how often the message was delivered before. On the first delivery the sender wrote the headers.

    A sender can make the headers unreadable, but cannot make a redelivery look like a first delivery.
    """
    if not method.redelivered:
        return 0
    count = (properties.headers or {}).get("x-delivery-count", ASSUMED_REDELIVERIES)
    return int(count) if isinstance(count, int) else ASSUMED_REDELIVERIES
