"""How much one RabbitMQ user may send in a minute. Pure, but for the tokens that a user has left.

The tokens are kept in the leader's memory; a new leader begins anew.
"""

from collections import OrderedDict

from pydantic import BaseModel, Field

from fluffle.broker import Delivery
from fluffle_aggregator.gates.gate import Refusal

TOO_MANY = "too-many"
TOO_MUCH = "too-much"
MINUTE_S = 60.0
MIB = 2**20


class RateLimits(BaseModel):
    """Limits on messages and bytes per user; None is no limit."""

    limit_messages: int | None = Field(
        None,
        ge=1,
        description="Messages that one RabbitMQ user may send in a minute; more are rejected. Unlimited if "
        "unset.",
    )
    limit_mib: float | None = Field(
        None,
        gt=0,
        description="MiB that one RabbitMQ user may send in a minute; more is rejected. Unlimited if unset.",
    )


class TokenBuckets:
    """For each sender a bucket of tokens that holds one minute's worth, and fills up within a minute.

    So within any `t` seconds a sender takes at most `per_minute * (1 + t / 60)`.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        # For each sender the tokens left at a time, the longest untouched sender first.
        self._left: OrderedDict[str | None, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, sender: str | None, amount: float, *, now: float) -> bool:
        """Take tokens from a sender's bucket, or none and return False; `now` is monotonic, in seconds."""
        self._forget_full(now)
        left, since = self._left.pop(sender, (self.per_minute, now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / MINUTE_S)
        is_enough = amount <= left
        self._left[sender] = left - amount if is_enough else left, now
        return is_enough

    def _forget_full(self, now: float) -> None:
        """Drop the buckets that nobody touched for a minute: they are full, as new ones are."""
        while self._left:
            sender, (_, since) = next(iter(self._left.items()))
            if now - since < MINUTE_S:
                return
            del self._left[sender]


class Rates:
    """Counts what each RabbitMQ user sends. It looks at no message's content, so that a flood is cheap."""

    def __init__(self, limits: RateLimits) -> None:
        self._messages = None if limits.limit_messages is None else TokenBuckets(limits.limit_messages)
        self._bytes = None if limits.limit_mib is None else TokenBuckets(limits.limit_mib * MIB)

    def refusal(self, delivery: Delivery, *, now: float) -> Refusal | None:
        """Return why a message is one too many, or None; `now` is monotonic, in seconds.

        Messages without a verified user share one bucket. A redelivered message was counted when it first
        came.
        """
        if delivery.redeliveries:
            return None
        user, size_bytes = delivery.user, len(delivery.body)
        sender = f"the RabbitMQ user {user!r}" if user else "whoever sends without a verified RabbitMQ user"
        if self._messages is not None and not self._messages.take(user, 1, now=now):
            return Refusal(
                TOO_MANY,
                f"{sender} has sent more than {self._messages.per_minute:g} messages in a minute "
                "(limit_messages)",
            )
        if self._bytes is not None and not self._bytes.take(user, size_bytes, now=now):
            return Refusal(
                TOO_MUCH,
                f"with these {size_bytes / MIB:.3g} MiB, {sender} has sent more than "
                f"{self._bytes.per_minute / MIB:g} MiB in a minute (limit_mib)",
            )
        return None
