"""What Fluffle needs of a broker: an interface, implemented by RabbitBroker and by FakeBroker."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from fluffle.pieces import Body
from fluffle.topology import LISTENER_MAX_BYTES, Queue, Topology

# In the year 9999, the last that datetime knows.
LAST_SECOND = 253_370_000_000


def unix_seconds(text: str) -> float | None:
    """Return the Unix seconds that a header holds, None when they are no time that can be shown."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < LAST_SECOND else None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that the broker keeps until it is acked.

    `redeliveries` counts how often a consumer had it before. `user` is the sender, verified by the broker, or
    None when the sender gave none. `exchange` is where it was published, which proves that its sender has the
    right to publish there; a routing key would prove nothing.
    """

    tag: int
    body: bytes
    redeliveries: int = 0
    user: str | None = None
    exchange: str = ""
    headers: Mapping[str, object] = field(default_factory=dict)

    @property
    def published_at(self) -> float:
        """When it was published, in Unix seconds, as its sender says; 0 when it does not."""
        said = self.headers.get("at")
        return (unix_seconds(said) if isinstance(said, str) else None) or 0.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many messages wait in a queue, and how many active consumers it has (standbys are not counted)."""

    messages: int
    consumers: int


class StreamReader(Protocol):
    """Reads the bodies of a stream in order; raises ConnectionLost when the stream is deleted."""

    def next_body(self, timeout_s: float) -> bytes | None:
        """Return the next body, or None when for `timeout_s` none came and none was on its way."""


class Listener(Protocol):
    """Receives what is published on an exchange; when too much waits, the oldest messages are dropped."""

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """Return the next message, which needs no ack, or None when none came within `timeout_s`."""


class Broker(Protocol):
    """One connection of one user. It never reconnects: after a loss, start again with a new one.

    Every method may raise ConnectionLost. A message that was being published then may have arrived or not.
    """

    def declare(self, topology: Topology) -> None:
        """Make the exchanges, queues and bindings that are missing; raise RequestRefused if one differs."""

    def check(self, topology: Topology) -> None:
        """Raise TopologyMissing unless all exchanges and queues exist. This needs no rights."""

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """Send a message and wait until the broker confirms it, for every queue that it goes to.

        Raises QueueFull when a queue refuses it for now, Unroutable when no queue is bound, AccessRefused
        without the right, MessageTooLarge when it is larger than the broker's limit.
        """

    def publish_as(
        self, user: str, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]
    ) -> None:
        """Publish a message in the name of another user; "" gives no name.

        RabbitMQ refuses this (AccessRefused) unless the connection's user has the tag `impersonator`.
        """

    def publish_unconfirmed(
        self, exchange: str, routing_key: str, body: bytes, *, kind: str = "events"
    ) -> None:
        """Send a message to an exchange's queues and listeners without waiting.

        It may be lost. It never raises, and an error never ends the connection.
        """

    def listen(
        self, exchange: str, *, name: str, max_bytes: int = LISTENER_MAX_BYTES
    ) -> AbstractContextManager[Listener]:
        """Receive all that is published on a topic exchange, through a queue that lasts as long as the block.

        The queue is called EXCHANGE.NAME. Only one listener at a time may have this name. At most `max_bytes`
        wait in the queue: beyond that the oldest messages are dropped.
        """

    def take_name(
        self, topology: Topology, worker: str, *, label: str, on_rival: Callable[[str], None]
    ) -> None:
        """Reserve a worker's name for this connection, as long as it lasts.

        `label` tells others which process has the name: up to 60 printable ASCII characters without quotes.
        `on_rival` is called, on any thread, with the label of each process that wants the name meanwhile.
        Raises NameTaken when another process has the name and answers, ConnectionLost when it does not answer
        (it may be dead, and the broker has not noticed), AccessRefused without the right to the name.
        """

    def consume(self, queue: str, *, prefetch: int) -> None:
        """Start to receive the messages of a queue, at most `prefetch` unacked ones at a time."""

    def cancel(self) -> None:
        """Stop consuming, so that a standby becomes the active consumer. Unacked messages stay unacked."""

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """Return the next message of the consumed queue, or None when none came within `timeout_s`.

        Calling this releases the previous delivery's body: while tens of megabytes are not released, no more
        are read from the socket, except what comes before the confirm of a publish.
        """

    def ack(self, tags: Iterable[int]) -> None:
        """Tell the broker that it may delete these messages."""

    def give_back(self, tags: Iterable[int]) -> None:
        """Let unacked messages return to the queue, in their order: it delivers them again at once."""

    def settle(self, queue: str, tags: Iterable[int]) -> None:
        """Ack messages of a queue that is no longer consumed, and return when the queue has deleted them.

        After `ack`, a connection that ends may take unprocessed acks with it: then the messages come back.
        This call may take one waiting message from the queue, which returns when the connection ends.
        """

    def peek(self, queue: str) -> AbstractContextManager[Iterator[bytes]]:
        """Read the bodies that wait in a queue, in order, and leave the messages there.

        Only one process at a time may do so, since a second one would see only the rest: ConnectionLost when
        another one does not finish. A queue with a single active consumer cannot be peeked: RequestRefused.
        """

    def state(self, queue: str) -> QueueState:
        """Count the messages that wait in a queue, and its consumers."""

    def read_stream(
        self, queue: str, *, offset: str, prefetch: int = 1
    ) -> AbstractContextManager[StreamReader]:
        """Read a stream from "first" or "last" on; "last" means the last chunk, one message or more.

        The broker sends up to `prefetch` messages before the first of them is taken.
        """

    def recreate_stream(self, stream: Queue) -> None:
        """Delete a stream and create it again, empty."""

    def in_background(self, job: Callable[["Broker"], None]) -> None:
        """Run a job on a thread and a connection of its own: nothing waits for it, or fails with it.

        Its errors are logged. While one job runs, others are dropped.
        """

    def close(self) -> None:
        """End the connection; unacked messages return to their queue."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
