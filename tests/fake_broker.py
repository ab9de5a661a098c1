"""A Broker in one process, for tests and simulations: no network, no thread, no clock.

It follows the rules of RabbitMQ that Fluffle depends on: one active consumer, redelivery of unacked messages
in their original order, a bounded head, a stream that can be read again, and refusals by full queues.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from fluffle.broker import Broker, Delivery, Listener, QueueState, StreamReader
from fluffle.errors import (
    ConnectionLost,
    FluffleError,
    NameTaken,
    QueueFull,
    RequestRefused,
    TopologyMissing,
    Unroutable,
)
from fluffle.message_size import require_message_fits
from fluffle.pieces import Body
from fluffle.topology import LISTENER_MAX_BYTES, LISTENER_MAX_MESSAGES, MAX_MESSAGE_BYTES, Queue, Topology


@dataclass
class _FakeQueue:
    queue: Queue
    ready: deque[Delivery] = field(default_factory=deque)
    consumers: "list[FakeBroker]" = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(len(delivery.body) for delivery in self.ready)

    @property
    def refuses(self) -> bool:
        return self.queue.arguments.get("x-overflow") == "reject-publish" and self._is_over_limit

    @property
    def _is_over_limit(self) -> bool:
        arguments = self.queue.arguments
        most, most_bytes = arguments.get("x-max-length"), arguments.get("x-max-length-bytes")
        return (isinstance(most, int) and len(self.ready) > most) or (
            isinstance(most_bytes, int) and self.size_bytes > most_bytes
        )

    def put(self, delivery: Delivery) -> None:
        self.ready.append(delivery)
        while self.queue.arguments.get("x-overflow") == "drop-head" and self._is_over_limit:
            self.ready.popleft()


@dataclass(frozen=True)
class _NameHolder:
    broker: "FakeBroker"
    label: str
    on_rival: Callable[[str], None]


@dataclass
class FakeServer:
    """What a RabbitMQ node holds; every FakeBroker is one connection to it.

    No call waits longer than `longest_wait_s`. A test with one thread sets 0, since nothing comes meanwhile.
    """

    longest_wait_s: float = math.inf
    max_message_bytes: int = MAX_MESSAGE_BYTES
    exchanges: dict[str, list[str]] = field(default_factory=dict)
    queues: dict[str, _FakeQueue] = field(default_factory=dict)
    listeners: dict[str, dict[str, deque[Delivery]]] = field(default_factory=dict)
    names: dict[str, _NameHolder] = field(default_factory=dict)
    last_topic: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)
    last_tag: int = 0

    def queue(self, name: str) -> _FakeQueue:
        """Return a queue by its name."""
        if name not in self.queues:
            raise TopologyMissing(f"queue {name} is not on this fake broker")
        return self.queues[name]

    def bodies(self, name: str) -> list[bytes]:
        """Return the bodies that wait in a queue."""
        return [delivery.body for delivery in self.queue(name).ready]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the condition holds or time is up; the caller holds `changed`."""
        self.changed.wait_for(condition, min(timeout_s, self.longest_wait_s))

    def put_back(self, queue: _FakeQueue, delivery: Delivery) -> None:
        """Return a message to the front of its queue, or dead-letter it when it returned too often."""
        arguments, returned = queue.queue.arguments, replace(delivery, redeliveries=delivery.redeliveries + 1)
        limit = arguments.get("x-delivery-limit")
        if not isinstance(limit, int) or returned.redeliveries <= limit:
            queue.ready.appendleft(returned)
            return
        exchange = str(arguments.get("x-dead-letter-exchange", ""))
        headers = {
            **delivery.headers,
            "x-first-death-reason": "delivery_limit",
            "x-first-death-queue": queue.queue.name,
            "x-first-death-exchange": delivery.exchange,
        }
        for name in self.exchanges.get(exchange, []):
            if name in self.queues:
                self.queues[name].put(replace(delivery, redeliveries=0, exchange=exchange, headers=headers))

    def deliver(self) -> None:
        """Deliver waiting messages to the active consumers, as many as their prefetch allows."""
        for queue in self.queues.values():
            while queue.ready and queue.consumers and queue.consumers[0].has_room:
                self.last_tag += 1
                delivery = replace(queue.ready.popleft(), tag=self.last_tag)
                queue.consumers[0].take(queue.queue.name, delivery)
        self.changed.notify_all()


class FakeBroker(Broker):
    """One connection to a FakeServer; see `fluffle.broker.Broker` for what its methods promise."""

    def __init__(self, server: FakeServer, *, user: str = "fluffle") -> None:
        self._server = server
        self._user = user
        self._inbox: deque[Delivery] = deque()
        self._unacked: dict[int, tuple[str, Delivery]] = {}
        self._consuming: str | None = None
        self._prefetch = 0
        self._open = True

    @property
    def has_room(self) -> bool:
        """Whether the server may deliver one more message."""
        return len(self._unacked) < self._prefetch

    @property
    def is_open(self) -> bool:
        """Whether the connection is still there."""
        return self._open

    def take(self, queue: str, delivery: Delivery) -> None:
        """Take a delivery from the server, until next_delivery returns it."""
        self._unacked[delivery.tag] = queue, delivery
        self._inbox.append(delivery)

    def declare(self, topology: Topology) -> None:
        with self._connected():
            for exchange in topology.exchanges:
                self._server.exchanges.setdefault(exchange.name, [])
                for source in exchange.sources:
                    self._server.listeners[source.name] = self._server.listeners.setdefault(exchange.name, {})
            for queue in topology.queues:
                self._declare_queue(queue)

    def check(self, topology: Topology) -> None:
        with self._connected():
            for exchange in topology.exchanges:
                if exchange.name not in self._server.exchanges:
                    raise TopologyMissing(
                        f"the federation {topology.federation!r} is not on this fake broker (no exchange "
                        f"{exchange.name})"
                    )
            for queue in topology.queues:
                self._server.queue(queue.name)

    def recreate_stream(self, stream: Queue) -> None:
        with self._connected():
            self._server.queues.pop(stream.name, None)
            self._declare_queue(stream)

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        self.publish_as(self._user, exchange, routing_key, body, headers)

    def publish_as(
        self, user: str, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]
    ) -> None:
        require_message_fits(
            f"this {headers.get('kind', 'message')}", len(body), self._server.max_message_bytes
        )
        with self._connected():
            names = [routing_key] if exchange == "" else self._server.exchanges.get(exchange)
            if names is None:
                self._leave()
                raise TopologyMissing(f"exchange {exchange} is not on this fake broker")
            targets = [self._server.queues[name] for name in names if name in self._server.queues]
            delivery = Delivery(0, bytes(body), 0, user or None, exchange, dict(headers))
            listeners = self._server.listeners.get(exchange, {})
            for heard in listeners.values():
                heard.append(delivery)
            if not targets and not listeners:
                raise Unroutable(f"no queue is bound to exchange {exchange or routing_key}")
            if any(target.refuses for target in targets):
                raise QueueFull(f"a queue of exchange {exchange or routing_key} is full")
            for target in targets:
                target.put(delivery)

    def publish_unconfirmed(
        self, exchange: str, routing_key: str, body: bytes, *, kind: str = "events"
    ) -> None:
        with suppress(ConnectionLost), self._connected():
            self._server.last_topic = routing_key
            delivery = Delivery(0, bytes(body), 0, self._user, exchange, {"kind": kind})
            for heard in self._server.listeners.get(exchange, {}).values():
                heard.append(delivery)
            for name in self._server.exchanges.get(exchange, []):
                if name in self._server.queues:
                    self._server.queues[name].put(delivery)

    @contextmanager
    def listen(self, exchange: str, *, name: str, max_bytes: int = LISTENER_MAX_BYTES) -> Iterator[Listener]:
        heard: deque[Delivery] = deque(maxlen=LISTENER_MAX_MESSAGES)
        with self._connected():
            if exchange not in self._server.exchanges:
                raise TopologyMissing(f"exchange {exchange} is not on this fake broker")
            self._server.listeners.setdefault(exchange, {})[name] = heard
        try:
            yield _FakeListener(self, self._server, heard)
        finally:
            del self._server.listeners[exchange][name]

    def take_name(
        self, topology: Topology, worker: str, *, label: str, on_rival: Callable[[str], None]
    ) -> None:
        with self._connected():
            name = topology.worker_lock(worker)
            holder = self._server.names.get(name)
            if holder is None or not holder.broker.is_open:
                self._server.names[name] = _NameHolder(self, label, on_rival)
                return
        holder.on_rival(label)
        raise NameTaken(f"another process works under the worker name {worker!r}: {holder.label}")

    def consume(self, queue: str, *, prefetch: int) -> None:
        with self._connected():
            self._consuming, self._prefetch = queue, prefetch
            self._server.queue(queue).consumers.append(self)

    def cancel(self) -> None:
        with self._connected():
            if self._consuming is not None:
                self._server.queue(self._consuming).consumers.remove(self)
                self._consuming = None

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        with self._connected():
            self._server.wait_for(
                lambda: not self._open or bool(self._inbox) or self._lost_its_queue, timeout_s
            )
            if not self._open:
                raise ConnectionLost("the fake connection is closed")
            if self._inbox:
                return self._inbox.popleft()
            if self._lost_its_queue:
                self._leave()
                raise TopologyMissing(f"the consumed queue {self._consuming} was deleted")
            return None

    def ack(self, tags: Iterable[int]) -> None:
        with self._connected():
            for tag in tags:
                if self._unacked.pop(tag, None) is None:
                    self._leave()
                    raise ConnectionLost(f"the tag {tag} was never delivered here, or is acked already")

    def give_back(self, tags: Iterable[int]) -> None:
        with self._connected():
            for tag in sorted(tags, reverse=True):
                name, delivery = self._unacked.pop(tag)
                if name in self._server.queues:
                    self._server.put_back(self._server.queues[name], delivery)
            self._server.deliver()

    def settle(self, queue: str, tags: Iterable[int]) -> None:
        with self._connected():
            self._server.queue(queue)
        self.ack(tags)

    @contextmanager
    def peek(self, queue: str) -> Iterator[Iterator[bytes]]:
        with self._connected():
            if self._server.queue(queue).queue.arguments.get("x-single-active-consumer"):
                raise RequestRefused(f"queue {queue} has a single active consumer: nobody may look into it")
            bodies = self._server.bodies(queue)
        yield iter(bodies)

    def state(self, queue: str) -> QueueState:
        with self._connected():
            holder = self._server.names.get(queue)
            if holder is not None and holder.broker.is_open:
                return QueueState(0, 1)
            found = self._server.queue(queue)
            return QueueState(len(found.ready), len(found.consumers[:1]))

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        with self._connected():
            stream = self._server.queue(queue)
            if prefetch < 1:
                raise RequestRefused(f"{queue} is a stream, and takes no consumer without a prefetch")
            # No clock here: what came within some seconds is all that there is.
            position = max(0, len(stream.ready) - 1) if offset == "last" else 0
        yield _FakeStreamReader(self, self._server, stream, position)

    def in_background(self, job: Callable[[Broker], None]) -> None:
        # At once, and over this connection.
        with suppress(FluffleError):
            job(self)

    def close(self) -> None:
        with self._server.changed:
            self._leave()

    @property
    def _lost_its_queue(self) -> bool:
        return self._consuming is not None and self._consuming not in self._server.queues

    @contextmanager
    def _connected(self) -> Iterator[None]:
        with self._server.changed:
            if not self._open:
                raise ConnectionLost("the fake connection is closed")
            try:
                yield
            finally:
                self._server.deliver()

    def _declare_queue(self, queue: Queue) -> None:
        present = self._server.queues.setdefault(queue.name, _FakeQueue(queue))
        if present.queue != queue:
            raise RequestRefused(f"queue {queue.name} exists with other arguments")
        for exchange in queue.exchanges:
            bound = self._server.exchanges[exchange.name]
            if queue.name not in bound:
                bound.append(queue.name)

    def _leave(self) -> None:
        """Return the unacked messages to the front of their queues, in order, and stop consuming."""
        for name, delivery in reversed(self._unacked.values()):
            if name in self._server.queues:
                self._server.put_back(self._server.queues[name], delivery)
        self._unacked.clear()
        self._inbox.clear()
        for queue in self._server.queues.values():
            if self in queue.consumers:
                queue.consumers.remove(self)
        self._open = False
        self._server.deliver()


class _FakeStreamReader:
    def __init__(self, broker: FakeBroker, server: FakeServer, stream: _FakeQueue, position: int) -> None:
        self._broker = broker
        self._server = server
        self._stream = stream
        self._position = position

    def next_body(self, timeout_s: float) -> bytes | None:
        with self._server.changed:
            self._server.wait_for(lambda: self._has_next or self._is_lost, timeout_s)
            if self._is_lost:
                raise ConnectionLost(f"the reader of {self._stream.queue.name} was ended")
            if not self._has_next:
                return None
            self._position += 1
            return self._stream.ready[self._position - 1].body

    @property
    def _has_next(self) -> bool:
        return self._position < len(self._stream.ready)

    @property
    def _is_lost(self) -> bool:
        is_there = self._server.queues.get(self._stream.queue.name) is self._stream
        return not (self._broker.is_open and is_there)


class _FakeListener:
    def __init__(self, broker: FakeBroker, server: FakeServer, heard: deque[Delivery]) -> None:
        self._broker = broker
        self._server = server
        self._heard = heard

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        with self._server.changed:
            self._server.wait_for(lambda: bool(self._heard) or not self._broker.is_open, timeout_s)
            if not self._broker.is_open:
                raise ConnectionLost("the fake connection is closed")
            return self._heard.popleft() if self._heard else None
