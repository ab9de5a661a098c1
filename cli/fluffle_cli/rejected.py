"""The refused messages of a federation: what is known of each, and how they leave the queue F.rejected.

All that is looked through stays the broker's, unacked, until it has left for good; when the connection ends,
however it ends, RabbitMQ has every other message again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import IO, Self

from fluffle.broker import Broker, Delivery, unix_seconds
from fluffle.errors import AccessRefused, ConfigError, QueueFull
from fluffle.model_stream import SLOW_LINK_S
from fluffle.topology import Topology

# RabbitMQ gives one consumer no more unacked messages than this.
MOST_AT_ONCE = 65_535
# So many are removed between two steps of a progress bar.
AT_ONCE = 256
# What RabbitMQ's own reasons mean.
MOVED_BECAUSE = {
    "delivery-limit": "RabbitMQ moved it here: every aggregator that received it died, or lost its "
    "connection",
    "expired": "RabbitMQ moved it here: it waited for longer than a policy's message-ttl allows",
    "maxlen": "RabbitMQ moved it here: its queue was full, and a policy's overflow lets it drop the oldest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedMessage:
    """One message of F.rejected, without its body.

    `number` is its position, from 1. `worker` is the one that the update names, else the user. `user` is the
    RabbitMQ user that sent it, and `through` the exchange that it came through; empty where nobody knows.
    `at` is when it was refused, and `published_at` when its sender says that it sent it: Unix time in
    seconds. What RabbitMQ itself moved here has RabbitMQ's reason: delivery-limit, expired or maxlen.
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
        """Read what the headers say; they are an aggregator's, or RabbitMQ's and the sender's."""
        headers = delivery.headers
        moved_because = _text(headers, "x-first-death-reason").replace("_", "-")
        if moved_because:
            user = delivery.user or ""
            reason, worker, through = moved_because, user, _text(headers, "x-first-death-exchange")
            detail = MOVED_BECAUSE.get(moved_because, "RabbitMQ moved it here")
            published_at, at = _text(headers, "at"), _death_time(headers)
        else:
            user = _text(headers, "user")
            reason, worker, through = (
                _text(headers, "reason"),
                _text(headers, "worker") or user,
                _text(headers, "through"),
            )
            published_at, at = _text(headers, "published_at"), unix_seconds(_text(headers, "at"))
            detail = _text(headers, "detail")
        return cls(
            number=number,
            reason=reason,
            detail=detail,
            worker=worker,
            id=_text(headers, "id"),
            user=user,
            through=through,
            size_bytes=len(delivery.body),
            # 0 stands for nothing said.
            published_at=unix_seconds(published_at) or None,
            at=at,
            tag=delivery.tag,
        )

    def as_json(self) -> dict[str, object]:
        """Return plain types under keys that stay: the fields' names but `tag`, null for an unknown time."""
        return {name: value for name, value in asdict(self).items() if name != "tag"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages are meant: those named, or all, with this reason and of this worker where given."""

    numbers: tuple[range, ...] = ()
    ids: frozenset[str] = frozenset()
    is_all: bool = False
    reason: str | None = None
    worker: str | None = None

    @classmethod
    def parse(cls, which: str, *, reason: str | None, worker: str | None) -> Self:
        """Read `all`, or numbers, ranges and ids with commas between them: `3,7-9,site-1/4f3a/12`."""
        numbers: list[range] = []
        ids: set[str] = set()
        for part in which.split(","):
            first, _, last = part.partition("-")
            if "/" in part:
                ids.add(part)
            elif re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", part) and int(first) <= int(last or first):
                numbers.append(range(int(first), int(last or first) + 1))
            elif which != "all":
                raise ConfigError(
                    f"{part!r} is no message: give numbers of `fluffle rejected list`, ranges, ids, "
                    "or all, as in 3,7-9 or site-1/4f3a/12"
                )
        return cls(
            numbers=tuple(numbers), ids=frozenset(ids), is_all=which == "all", reason=reason, worker=worker
        )

    def require_match(self, found: Collection[RejectedMessage]) -> None:
        """Raise ConfigError that names what is not among the messages found, unless all were meant."""
        missing = [one for one in self.ids if all(message.id != one for message in found)]
        missing += [
            f"{each[0]}-{each[-1]}" if len(each) > 1 else str(each[0])
            for each in self.numbers
            if all(message.number not in each for message in found)
        ]
        if missing:
            narrowed = " of that reason or worker" if self.reason or self.worker else ""
            raise ConfigError(f"no message{narrowed} is {', '.join(missing)}: see `fluffle rejected list`")

    def __contains__(self, message: RejectedMessage) -> bool:
        named = self.is_all or message.id in self.ids or any(message.number in each for each in self.numbers)
        return (
            named
            and (self.reason is None or message.reason == self.reason)
            and (self.worker is None or message.worker == self.worker)
        )


def waiting(broker: Broker, topology: Topology) -> int:
    """Count the messages in F.rejected that nobody holds."""
    return broker.state(topology.rejected.name).messages


def look_through(broker: Broker, topology: Topology, count: int) -> Iterator[Delivery]:
    """Yield so many messages of F.rejected from the oldest on, at most MOST_AT_ONCE; none is acked.

    They come from one consumer, and not from `peek`: what is taken with RabbitMQ's basic.get goes back in
    any order. For one look on each connection.
    """
    broker.consume(topology.rejected.name, prefetch=MOST_AT_ONCE)
    for _ in range(min(count, MOST_AT_ONCE)):
        delivery = broker.next_delivery(SLOW_LINK_S)
        if delivery is None:
            break  # another one has taken them meanwhile, or they were dropped for newer ones
        yield delivery
    # What is refused from now on is not ours to hold.
    broker.cancel()


def put_into_queue(
    broker: Broker, topology: Topology, chosen: Iterable[RejectedMessage], bodies: IO[bytes]
) -> Iterator[RejectedMessage]:
    """Send messages to the aggregator anew, as those who sent them; yield each that has left F.rejected.

    `bodies` has the bodies of the chosen, one after the other. Raises AccessRefused when this user may not
    speak for others, and QueueFull when the aggregator has too much to do; the rest then stays.
    """
    # An evaluation counts only if it comes through the evaluators' own exchange.
    known = [topology.updates_in.name, topology.evaluations_in.name]
    for message in chosen:
        through = message.through if message.through in known else known[0]
        body = bodies.read(message.size_bytes)
        headers = {"id": message.id} if message.id else {}
        try:
            # A user of "" stays nobody: whoever left it out is not lent the operator's name.
            broker.publish_as(message.user, through, "", body, headers)
        except AccessRefused as error:
            raise AccessRefused(
                f"message {message.number} cannot be sent again as {message.user!r}, whose it is: log in as "
                f"a user that may write to {through} and has the tag impersonator (rabbitmqctl set_user_tags "
                "USER impersonator)"
            ) from error
        except QueueFull as error:
            raise QueueFull(
                f"message {message.number} and those behind it stay in {topology.rejected.name}: {error}"
            ) from error
        broker.settle(topology.rejected.name, [message.tag])
        yield message


def remove(
    broker: Broker, topology: Topology, chosen: Iterable[RejectedMessage]
) -> Iterator[RejectedMessage]:
    """Remove messages for good; yield each that is gone."""
    left = list(chosen)
    while left:
        broker.settle(topology.rejected.name, [message.tag for message in left[:AT_ONCE]])
        yield from left[:AT_ONCE]
        del left[:AT_ONCE]


def summary(messages: Iterable[RejectedMessage]) -> tuple[Counter[str], Counter[str]]:
    """Count messages by reason and by worker."""
    reasons: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    for message in messages:
        reasons[message.reason] += 1
        workers[message.worker] += 1
    return reasons, workers


def printable(text: str) -> str:
    """Return text without what would move a terminal's cursor: its author may be anybody."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _text(headers: Mapping[str, object], name: str) -> str:
    value = headers.get(name)
    return printable(value) if isinstance(value, str) else ""


def _death_time(headers: Mapping[str, object]) -> float | None:
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else {}
    when = first.get("time") if isinstance(first, dict) else None
    return when.timestamp() if isinstance(when, datetime) else None
