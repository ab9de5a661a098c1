"""The refused messages of a federation: what is known of each, and how they leave the queue F.rejected.

RabbitMQ keeps every message that is read here, unacked, until it is removed or sent again. All other messages
are back in the queue when the connection ends, for whatever reason.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import IO, Self

from rich.filesize import decimal
from rich.progress import track

from fluffle import logs
from fluffle.broker import Broker, Delivery, unix_seconds
from fluffle.errors import AccessRefused, ConfigError, QueueFull
from fluffle.model_stream import SLOW_LINK_S
from fluffle.topology import Topology
from fluffle_cli.restoring import is_unconsumed
from fluffle_cli.words import count

# RabbitMQ gives one consumer no more unacked messages than this.
MOST_AT_ONCE = 65_535
# Messages that are removed between two steps of the progress bar.
BATCH = 256
# RabbitMQ's own reasons, explained.
MOVED = "RabbitMQ moved it here"
MOVED_BECAUSE = {
    "delivery-limit": f"{MOVED}: every aggregator that received it died or lost its connection",
    "expired": f"{MOVED}: it waited for longer than a policy's message-ttl allows",
    "maxlen": f"{MOVED}: its queue was full, and a policy's overflow lets it drop the oldest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedMessage:
    """One message of F.rejected, without its body.

    `number` is its position, from 1. `worker` is the one that the update names, else the user. `user` is the
    RabbitMQ user that sent it, and `through` the exchange that it came through; empty if unknown. `at` is
    when it was refused, and `published_at` when its sender says that it sent it: Unix time in seconds. A
    message that RabbitMQ itself moved here has RabbitMQ's reason: delivery-limit, expired or maxlen.
    """

    number: int
    reason: str
    detail: str
    worker: str
    id: str
    user: str
    through: str
    size_bytes: int
    published_at: float | None
    at: float | None
    tag: int

    @classmethod
    def of(cls, delivery: Delivery, number: int) -> Self:
        """Read the headers, which an aggregator set, or RabbitMQ and the sender."""

        def text(name: str) -> str:
            value = delivery.headers.get(name)
            return printable(value) if isinstance(value, str) else ""

        moved_because = text("x-first-death-reason").replace("_", "-")
        user = (delivery.user or "") if moved_because else text("user")
        return cls(
            number=number,
            reason=moved_because or text("reason"),
            detail=MOVED_BECAUSE.get(moved_because, MOVED) if moved_because else text("detail"),
            worker=user if moved_because else text("worker") or user,
            id=text("id"),
            user=user,
            through=text("x-first-death-exchange" if moved_because else "through"),
            size_bytes=len(delivery.body),
            # 0 means that the sender says nothing.
            published_at=unix_seconds(text("at" if moved_because else "published_at")) or None,
            at=_death_time(delivery.headers) if moved_because else unix_seconds(text("at")),
            tag=delivery.tag,
        )

    def as_json(self) -> dict[str, object]:
        """Return plain types under stable keys: the names of the fields without `tag`; null if unknown."""
        return {name: value for name, value in asdict(self).items() if name != "tag"}


@dataclass(frozen=True, slots=True)
class Selection:
    """The messages that a command is for: "all", numbers, ranges and ids; narrowed by reason and worker."""

    parts: tuple[str, ...]
    reason: str | None = None
    worker: str | None = None

    @classmethod
    def parse(cls, which: str, *, reason: str | None, worker: str | None) -> Self:
        """Read `all`, or numbers, ranges and ids with commas between them: `3,7-9,site-1/4f3a/12`."""
        parts = tuple(which.split(","))
        for part in parts:
            if which != "all" and "/" not in part and not _numbers_in(part):
                raise ConfigError(
                    f"{part!r} is no message: give numbers, ranges or ids, as in 3,7-9,site-1/4f3a/12, or all"
                )
        return cls(parts, reason, worker)

    def require_match(self, found: Collection[RejectedMessage]) -> None:
        """Raise ConfigError that names each number, range and id for which no message was found."""
        missing = [part for part in self.parts if not any(_refers_to(part, message) for message in found)]
        if missing and missing != ["all"]:
            narrowed = " of that reason or worker" if self.reason or self.worker else ""
            raise ConfigError(f"no message{narrowed} is {', '.join(missing)}: see `fluffle rejected list`")

    def __contains__(self, message: RejectedMessage) -> bool:
        return (
            any(_refers_to(part, message) for part in self.parts)
            and self.reason in (None, message.reason)
            and self.worker in (None, message.worker)
        )


def read_rejected(broker: Broker, topology: Topology) -> Iterator[tuple[RejectedMessage, bytes]]:
    """Yield the messages of F.rejected and their bodies, the oldest first; none is acked.

    At most MOST_AT_ONCE of them. A connection can do this only once. Raises ConfigError while another process
    reads the queue, and AccessRefused without the right to read it.
    """
    queue = topology.rejected.name
    if not is_unconsumed(broker, queue):
        raise ConfigError(f"another process is reading {queue}: try again when it has ended")
    waiting = broker.state(queue).messages
    if waiting > MOST_AT_ONCE:
        logs.console().print(f"{waiting:,} messages are in {queue}: reading the oldest {MOST_AT_ONCE:,}")
    # A consumer and not `peek`: messages taken with RabbitMQ's basic.get go back in any order.
    broker.consume(queue, prefetch=MOST_AT_ONCE)
    numbers = range(1, min(waiting, MOST_AT_ONCE) + 1)
    for number in track(numbers, "reading", transient=True, console=logs.console()):
        delivery = broker.next_delivery(SLOW_LINK_S)
        if delivery is None:
            break  # another process has taken them, or they were dropped for newer ones
        yield RejectedMessage.of(delivery, number), delivery.body
    # Messages that are refused from now on stay in the queue.
    broker.cancel()


def send_again(
    broker: Broker, topology: Topology, chosen: Iterable[RejectedMessage], bodies: IO[bytes]
) -> Iterator[RejectedMessage]:
    """Send messages to the aggregator again, as their senders; yield each that has left F.rejected.

    `bodies` holds the bodies of the chosen messages, one after the other. Raises AccessRefused if this user
    may not send for others, and QueueFull if the updates queue is full; the remaining messages then stay.
    """
    # An evaluation is only accepted through the evaluators' own exchange.
    known = [topology.updates_in.name, topology.evaluations_in.name]
    for message in chosen:
        through = message.through if message.through in known else known[0]
        body = bodies.read(message.size_bytes)
        headers = {"id": message.id} if message.id else {}
        try:
            # A user of "" stays empty: a message without a sender does not get the operator's name.
            broker.publish_as(message.user, through, "", body, headers)
        except AccessRefused as error:
            raise AccessRefused(
                f"message {message.number} cannot be sent again as its sender {message.user!r}: log in as "
                f"an operator, or as a user that may write to {through} and has the tag impersonator"
            ) from error
        except QueueFull as error:
            raise QueueFull(
                f"message {message.number} and those behind it stay in {topology.rejected.name}: {error}"
            ) from error
        broker.settle(topology.rejected.name, [message.tag])
        yield message


def remove(
    broker: Broker, topology: Topology, chosen: Sequence[RejectedMessage]
) -> Iterator[RejectedMessage]:
    """Remove messages for good; yield each that is gone."""
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        broker.settle(topology.rejected.name, [message.tag for message in batch])
        yield from batch


def summary_of(messages: Collection[RejectedMessage]) -> str:
    """Count messages and bytes, by reason and by worker."""
    if not messages:
        return "no such message is in the queue"
    size = decimal(sum(each.size_bytes for each in messages))
    reasons, workers = Counter(each.reason for each in messages), Counter(each.worker for each in messages)
    by_reason = ", ".join(f"{many:,} {reason}" for reason, many in reasons.most_common())
    by_worker = ", ".join(f"{worker or 'unknown'} {many:,}" for worker, many in workers.most_common())
    return f"{count(len(messages), 'message')}, {size}: {by_reason}; from {by_worker}"


def printable(text: str) -> str:
    """Return text without control characters: anybody may have sent it to move a terminal's cursor."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _numbers_in(part: str) -> range:
    """Return the numbers that 7 or 7-9 stands for; none for any other text."""
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
    return range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)


def _refers_to(part: str, message: RejectedMessage) -> bool:
    return message.id == part if "/" in part else part == "all" or message.number in _numbers_in(part)


def _death_time(headers: Mapping[str, object]) -> float | None:
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else {}
    when = first.get("time") if isinstance(first, dict) else None
    return when.timestamp() if isinstance(when, datetime) else None
