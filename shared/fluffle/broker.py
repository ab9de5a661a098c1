"""What Fluffle asks of a broker: one contract, kept by RabbitBroker and by FakeBroker (tests/contract)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from fluffle.pieces import Body
from fluffle.topology import Queue, Topology

# Of the year 9999, the last that can be shown.
LAST_SECOND = 253_370_000_000


def unix_seconds(text: str) -> float | None:
    """Return a time that a header says in Unix seconds, None where that is none that can be shown."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < LAST_SECOND else None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that stays the broker's until it is acked.

    `redeliveries` counts how often it was given to a consumer before. `user` is the RabbitMQ user that the
    broker verified as its sender, or None when the sender did not say. `exchange` is the one that it came
    through, which says what rights its sender has; a routing key would say nothing.
    """

    tag: int
    body: bytes
    redeliveries: int = 0
    user: str | None = None
    exchange: str = ""
    headers: Mapping[str, object] = field(default_factory=dict)

    @property
    def published_at(self) -> float:
        """When its sender says that it published this: Unix time in seconds, 0 where it says nothing."""
        said = self.headers.get("at")
        return (unix_seconds(said) if isinstance(said, str) else None) or 0.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """What can be seen of a queue from outside: messages that wait, and active consumers (no standbys)."""

    messages: int
    consumers: int


class StreamReader(Protocol):
    """Reads the bodies of a stream in their order; a stream that is deleted meanwhile is a ConnectionLost."""

    def next_body(self, timeout_s: float) -> bytes | None:
        """Return the next body, or None when none came, and none was on its way, for `timeout_s`."""


class Listener(Protocol):
    """Hears what is told on an exchange from now on; of those who do not keep up, the oldest is dropped."""

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """Return the next message, which needs no ack, or None when none came within the time."""


class Broker(Protocol):
    """One connection, for one user. It never reconnects: whoever lost it starts again with a new one.

    Every method may raise ConnectionLost. What was given to `publish` before may then have arrived or not.
    """

    def declare(self, topology: Topology) -> None:
        """Make the exchanges, queues and bindings that are missing; TopologyMismatch when one differs."""

    def check(self, topology: Topology) -> None:
        """Look whether all exchanges and queues are there, which needs no rights; else TopologyMissing."""

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """Send a message and wait until the broker has taken responsibility for it in every queue.

        Raises QueueFull when a queue refuses it for now, Unroutable when no queue takes it, AccessRefused
        without the right, MessageTooLarge when the broker's limit is smaller.
        """

    def publish_as(
        self, user: str, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]
    ) -> None:
        """Publish a message whose sender is another user; "" stands for nobody.

        RabbitMQ refuses that (AccessRefused) unless the connection's user has the tag `impersonator`.
        """

    def publish_unconfirmed(
        self, exchange: str, routing_key: str, body: bytes, *, kind: str = "events"
    ) -> None:
        """Send a message to an exchange's queues and listeners without waiting.

        It may be lost. It never raises, and an error never ends the connection.
        """

    def listen(self, exchange: str, *, name: str) -> AbstractContextManager[Listener]:
        """Hear all that is told on a topic exchange, through a queue of one's own.

        The queue is called as the exchange, a dot and `name`, which nobody else may use meanwhile.
        """

    def take_name(
        self, topology: Topology, worker: str, *, plate: str, on_rival: Callable[[str], None]
    ) -> None:
        """Have a worker's name to oneself as long as this connection lasts.

        `plate` tells others who has it: up to 60 printable ASCII characters but quotes. `on_rival` is called,
        on any thread, with the plate of each process that wanted the name meanwhile. Raises NameTaken when
        another process has the name and works, ConnectionLost when whoever has it does not answer (it may
        be gone without the broker's knowing), AccessRefused without the right to the name.
        """

    def consume(self, queue: str, *, prefetch: int) -> None:
        """Ask for the messages of a queue, at most `prefetch` of them unacked at a time."""

    def cancel(self) -> None:
        """Stop consuming, so that a standby becomes the active consumer; what is unacked stays so."""

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """Return the next message of the consumed queue, or None when none came within the time.

        Who asks is done with the body of the one before: while tens of megabytes are in hand, no more are
        received but what comes before the confirm of a publish.
        """

    def ack(self, tags: Iterable[int]) -> None:
        """Tell the broker that these messages are done with."""

    def settle(self, queue: str, tags: Iterable[int]) -> None:
        """Ack messages of a queue that is not consumed (any more), and return when it has let go of them.

        RabbitMQ may not have passed on the acks before a connection ends: then such messages come back. A
        message that waits in the queue may be taken meanwhile, and goes back when the connection ends.
        """

    def peek(self, queue: str) -> AbstractContextManager[Iterator[bytes]]:
        """Look at the bodies that wait in a queue, one by one in their order, and leave them there.

        One at a time may look, since another would see only what is left: ConnectionLost when somebody else
        does and does not come to an end. RabbitMQ lets nobody look into a queue with a single active
        consumer: TopologyMismatch.
        """

    def state(self, queue: str) -> QueueState:
        """Count what waits in a queue and who consumes it."""

    def read_stream(
        self, queue: str, *, offset: str, prefetch: int = 1
    ) -> AbstractContextManager[StreamReader]:
        """Read a stream from "first" or "last" on; "last" means the last chunk, one message or more.

        The broker sends up to `prefetch` messages before the first of them is taken.
        """

    def recreate_stream(self, stream: Queue) -> None:
        """Delete a stream and create it again, empty."""

    def close(self) -> None:
        """Leave; unacked messages go back to their queue."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
