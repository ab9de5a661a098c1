"""The Broker contract in one process, for tests and simulations: no network, no thread, no clock.

It keeps RabbitMQ's rules that Fluffle leans on: one active consumer, redelivery in the original order of what
was not acked, a bounded head, a stream that anyone reads again, and refusal of what a queue has no room for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from fluffle.broker import Delivery, QueueState
from fluffle.errors import ConnectionLost, QueueFull, TopologyMismatch, TopologyMissing, Unroutable
from fluffle.topology import Queue, Topology


@dataclass
class _FakeQueue:
    queue: Queue
    ready: deque[Delivery] = field(default_factory=deque)
    consumers: list[FakeBroker] = field(default_factory=list)

    def accepts(self, body: bytes) -> bool:
        arguments = self.queue.arguments
        waiting = sum(len(delivery.body) for delivery in self.ready)
        limit = arguments.get("x-max-length-bytes")
        full = isinstance(limit, int) and waiting + len(body) > limit
        return arguments.get("x-overflow") != "reject-publish" or not full

    def put(self, delivery: Delivery) -> None:
        self.ready.append(delivery)
        limit = self.queue.arguments.get("x-max-length")
        while isinstance(limit, int) and len(self.ready) > limit:
            self.ready.popleft()


@dataclass
class FakeServer:
    """What a RabbitMQ node holds; every FakeBroker is one connection to it."""

    exchanges: dict[str, list[str]] = field(default_factory=dict)
    queues: dict[str, _FakeQueue] = field(default_factory=dict)
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


class FakeBroker:
    """One connection to a FakeServer; see `fluffle.broker.Broker` for what its methods promise."""

    def __init__(self, server: FakeServer, *, user: str = "fluffle") -> None:
        self._server = server
        self._user = user
        self._unacked: dict[int, tuple[str, Delivery]] = {}
        self._consuming: str | None = None
        self._prefetch = 0
        self._open = True

    def declare(self, topology: Topology) -> None:
        """See Broker."""
        with self._connected():
            for exchange in topology.exchanges:
                self._server.exchanges.setdefault(exchange.name, [])
            for queue in topology.queues:
                self._declare_queue(queue)

    def check(self, topology: Topology) -> None:
        """See Broker."""
        with self._connected():
            if topology.updates.exchange.name not in self._server.exchanges:
                raise TopologyMissing(f"exchange {topology.updates.exchange.name} is not on this fake broker")
            self._server.queue(topology.models.name)

    def rebuild(self, topology: Topology) -> None:
        """See Broker."""
        with self._connected():
            self._server.queues.pop(topology.models.name, None)
            self._declare_queue(topology.models)

    def publish(self, exchange: str, routing_key: str, body: bytes, headers: Mapping[str, str]) -> None:
        """See Broker."""
        with self._connected():
            names = [routing_key] if exchange == "" else self._server.exchanges.get(exchange)
            if names is None:
                self._leave()
                raise TopologyMissing(f"exchange {exchange} is not on this fake broker")
            targets = [self._server.queues[name] for name in names if name in self._server.queues]
            if not targets:
                raise Unroutable(f"no queue is bound to exchange {exchange or routing_key}")
            if not all(target.accepts(body) for target in targets):
                raise QueueFull(f"a queue of exchange {exchange} is full")
            for target in targets:
                target.put(Delivery(0, bytes(body), 0, self._user, dict(headers)))

    def consume(self, queue: str, *, prefetch: int) -> None:
        """See Broker."""
        with self._connected():
            self._server.queue(queue).consumers.append(self)
            self._consuming, self._prefetch = queue, prefetch

    def cancel(self) -> None:
        """See Broker."""
        with self._connected():
            if self._consuming is not None:
                self._server.queue(self._consuming).consumers.remove(self)
                self._consuming = None

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Broker."""
        with self._connected():
            if self._consuming is None:
                return None
            self._server.changed.wait_for(lambda: not self._open or self._has_next(), timeout_s)
            if not self._open:
                raise ConnectionLost("the fake connection is closed")
            if self._consuming not in self._server.queues:
                raise TopologyMissing("the consumed queue was deleted")
            if not self._has_next():
                return None
            self._server.last_tag += 1
            queue = self._server.queue(self._consuming)
            delivery = replace(queue.ready.popleft(), tag=self._server.last_tag)
            self._unacked[delivery.tag] = self._consuming, delivery
            return delivery

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        with self._connected():
            for tag in tags:
                if self._unacked.pop(tag, None) is None:
                    self._leave()
                    raise ConnectionLost(f"the tag {tag} was never delivered here, or is acked already")

    def peek(self, queue: str) -> list[bytes]:
        """See Broker."""
        with self._connected():
            return self._server.bodies(queue)

    def state(self, queue: str) -> QueueState:
        """See Broker."""
        with self._connected():
            found = self._server.queue(queue)
            return QueueState(len(found.ready), len(found.consumers[:1]))

    @contextmanager
    def read_stream(self, queue: str, *, offset: str) -> Iterator[_FakeStreamReader]:
        """See Broker."""
        with self._connected():
            length = len(self._server.queue(queue).ready)
        yield _FakeStreamReader(self._server, queue, 0 if offset == "first" else max(0, length - 1))

    def close(self) -> None:
        """See Broker."""
        with self._server.changed:
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        with self._server.changed:
            if not self._open:
                raise ConnectionLost("the fake connection is closed")
            try:
                yield
            finally:
                self._server.changed.notify_all()

    def _declare_queue(self, queue: Queue) -> None:
        present = self._server.queues.setdefault(queue.name, _FakeQueue(queue))
        if present.queue != queue:
            raise TopologyMismatch(f"queue {queue.name} exists with other arguments")
        bound = self._server.exchanges[queue.exchange.name]
        if queue.name not in bound:
            bound.append(queue.name)

    def _has_next(self) -> bool:
        queue = self._server.queues.get(self._consuming or "")
        if queue is None:
            return True
        is_active = queue.consumers[:1] == [self]
        return is_active and bool(queue.ready) and len(self._unacked) < self._prefetch

    def _leave(self) -> None:
        """Put back what was not acked, in front and in its order, and make room for the next consumer."""
        for name, delivery in reversed(self._unacked.values()):
            returned = replace(delivery, redeliveries=delivery.redeliveries + 1)
            self._server.queue(name).ready.appendleft(returned)
        self._unacked.clear()
        for queue in self._server.queues.values():
            if self in queue.consumers:
                queue.consumers.remove(self)
        self._open = False
        self._server.changed.notify_all()


class _FakeStreamReader:
    def __init__(self, server: FakeServer, queue: str, position: int) -> None:
        self._server = server
        self._queue = queue
        self._position = position

    def next_body(self, timeout_s: float) -> bytes | None:
        with self._server.changed:
            self._server.changed.wait_for(lambda: self._position < len(self._ready()), timeout_s)
            if self._position >= len(self._ready()):
                return None
            self._position += 1
            return self._ready()[self._position - 1].body

    def _ready(self) -> deque[Delivery]:
        return self._server.queue(self._queue).ready
