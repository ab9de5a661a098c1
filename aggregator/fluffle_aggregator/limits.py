"""Limits per worker, so that one cannot drown the rest: messages, bytes, share of a buffer, norm. Pure.

Take them when a worker may be broken or hostile; all are off by default, and cost nothing then. Rates are
kept in the leader's memory, and a new leader begins anew. Share and norm depend on the model's state alone,
which is in its record, so that a successor decides as the leader before it did.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from fluffle.broker import Delivery
from fluffle.codecs.compressed import side_by_side
from fluffle.codecs.floats import Float32Vector
from fluffle.compression import CompressedVector, decompressed
from fluffle.model import Vector
from fluffle.update import WeightUpdate
from fluffle.vector_math import BLOCK_SIZE, matching_blocks
from fluffle_aggregator.admission import Policy, Reason, Refusal, refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.strategies import Strategy

MINUTE_S = 60.0
MIB = 2**20
# Fewer admitted norms than these say little about what is usual.
FEWEST_NORMS = 10
# Shares such as 0.29 of 100 are a hair below what a person means.
HAIR = 1e-9
# Of equal workers, some are a little ahead at any moment.
EQUAL_SHARES = 1.5


class TokenBuckets:
    """For each sender a bucket of tokens that holds a minute's worth, and fills up within a minute.

    So within any `t` seconds a sender takes at most `per_minute * (1 + t / 60)`.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        # What was left and when it was, the longest untouched first.
        self._left: OrderedDict[str | None, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, sender: str | None, amount: float, *, now: float) -> bool:
        """Take tokens from a sender's bucket, or none and return False; `now` is monotonic, in seconds."""
        self._forget_the_full(now)
        left, since = self._left.pop(sender, (self.per_minute, now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / MINUTE_S)
        is_enough = amount <= left
        self._left[sender] = left - amount if is_enough else left, now
        return is_enough

    def _forget_the_full(self, now: float) -> None:
        """Drop the buckets that nobody touched for a minute: they are full, as new ones are."""
        while self._left:
            sender, (_, since) = next(iter(self._left.items()))
            if now - since < MINUTE_S:
                return
            del self._left[sender]


class Rates:
    """How much each RabbitMQ user may send in a minute, whatever its messages say."""

    def __init__(self, policy: Policy) -> None:
        self._messages = None if policy.max_messages is None else TokenBuckets(policy.max_messages)
        self._bytes = None if policy.max_mib is None else TokenBuckets(policy.max_mib * MIB)

    def refusal(self, delivery: Delivery, *, now: float) -> Refusal | None:
        """Return why a message is one too many, or None; it needs not be decoded for that.

        `now` is monotonic, in seconds. Messages without a verified user share one bucket. What is redelivered
        was counted when it first came.
        """
        if delivery.redeliveries:
            return None
        if self._messages is not None and not self._messages.take(delivery.user, 1, now=now):
            return Refusal(
                Reason.TOO_MANY,
                f"{_named(delivery.user)} has sent more than {self._messages.per_minute:g} messages in a "
                "minute (FLUFFLE_LIMIT_MESSAGES)",
            )
        size_bytes = len(delivery.body)
        if self._bytes is not None and not self._bytes.take(delivery.user, size_bytes, now=now):
            return Refusal(
                Reason.TOO_MUCH,
                f"with these {size_bytes / MIB:.3g} MiB, {_named(delivery.user)} has sent more than "
                f"{self._bytes.per_minute / MIB:g} MiB in a minute (FLUFFLE_LIMIT_MIB)",
            )
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Admitted:
    """An update as it may be folded.

    `norm` is None while norms are not limited. `norm_before` is that of an update that was clipped to `norm`.
    """

    update: WeightUpdate
    norm: float | None = None
    norm_before: float | None = None


def admit(
    update: WeightUpdate, model: GlobalModel, policy: Policy, *, finished: str = ""
) -> Admitted | Refusal:
    """Return the update as it may be folded into this model, or why it may not."""
    refused = refusal(update, model, policy, finished=finished) or _over_share(update, model, policy)
    if refused:
        return refused
    if policy.max_norm is None:
        return Admitted(update)
    base = model.vector if update.sends == "weights" else None
    norm = norm_of(update.vector, base)
    bound = norm_bound(model.norms, policy.max_norm)
    if norm <= bound:
        return Admitted(update, norm)
    if policy.on_large_norm == "clip":
        short = Float32Vector.of(shortened(update.vector, bound / norm, base))
        clipped = replace(update, codec="float32", vector=short)
        return Admitted(clipped, bound, norm_before=norm)
    return Refusal(
        Reason.LARGE_NORM,
        f"the update would move the model by a norm of {norm:.4g}; at most {bound:.4g} is allowed, "
        f"{policy.max_norm:g} times the median of the last {len(model.norms)} (FLUFFLE_LIMIT_NORM)",
    )


def norm_bound(norms: tuple[float, ...], factor: float) -> float:
    """Return the largest norm to admit: `factor` times the median of those before, or infinity.

    There is no bound before FEWEST_NORMS are known, nor when most of them are zero: it would let in nothing.
    """
    if len(norms) < FEWEST_NORMS:
        return math.inf
    return factor * float(np.median(norms)) or math.inf


def norm_of(vector: CompressedVector, base: Vector | None = None) -> float:
    """Return the L2 norm of a vector, or of its difference from `base`, summed up in float64.

    Never by BLAS, whose sums differ from machine to machine: a successor must come to the same bits.
    """
    scratch = np.empty(min(vector.size, BLOCK_SIZE), np.float64)
    total = 0.0
    beside = zip(repeat(None), vector.blocks()) if base is None else side_by_side(base, vector.blocks())
    for origin, values in beside:
        moved = scratch[: values.size]
        if origin is None:
            moved[:] = values
        else:
            np.subtract(values, origin, out=moved, dtype=np.float64)
        total += float(np.sum(np.square(moved, out=moved)))
    return math.sqrt(total)


def shortened(vector: CompressedVector, scale: float, base: Vector | None = None) -> Vector:
    """Return scale * vector, or base + scale * (vector - base), as a new vector."""
    short = decompressed(vector)
    if base is None:
        return np.multiply(short, np.float32(scale), out=short)
    for result, origin in matching_blocks(short, base):
        np.subtract(result, origin, out=result)
        np.multiply(result, np.float32(scale), out=result)
        np.add(result, origin, out=result)
    return short


def _over_share(update: WeightUpdate, model: GlobalModel, policy: Policy) -> Refusal | None:
    if policy.max_share is None:
        return None
    if counts_share_over_window(model.strategy):
        return _over_share_of_window(update.id.worker, model, policy.max_share)
    worker, strategy = update.id.worker, model.strategy
    if worker not in model.in_buffer:
        return None
    facts = model.facts_of(update)
    # What the buffer would weigh if it were full of fresh updates of as many examples as those in it.
    full = (model.buffer.size + strategy.size_of(facts)) * strategy.buffer_size / (model.buffer.count + 1)
    weight = model.in_buffer[worker] + strategy.weight_of(facts)
    if weight <= policy.max_share * full * (1 + HAIR):
        return None
    return Refusal(
        Reason.OVER_SHARE,
        f"with this update, worker {worker} would have a weight of {weight:.3g} in a buffer of {full:g}; its "
        f"share is at most {policy.max_share:g} (FLUFFLE_LIMIT_SHARE)",
    )


def counts_share_over_window(strategy: Strategy) -> bool:
    """Tell whether a share is one of the last SHARE_WINDOW updates, since a buffer has one update only."""
    return strategy.buffer_size == 1


def _over_share_of_window(worker: str, model: GlobalModel, max_share: float) -> Refusal | None:
    """Return why a worker has had too much of the last updates.

    Where few workers are at work, somewhat more than an equal share is always allowed. Refused updates move
    the window on too: a worker whose neighbours have left is not held up for long.
    """
    weights: defaultdict[str, float] = defaultdict(float)
    for sender, weight in model.window:
        if weight:
            weights[sender] += weight
    allowed = max(max_share, EQUAL_SHARES / max(1, len(weights)))
    share = weights.get(worker, 0.0) / (sum(weights.values()) or 1.0)
    if share <= allowed * (1 + HAIR):
        return None
    return Refusal(
        Reason.OVER_SHARE,
        f"worker {worker} has {share:.0%} of the weight of the last {len(model.window)} updates; its share "
        f"is at most {allowed:.0%} (FLUFFLE_LIMIT_SHARE)",
    )


def _named(user: str | None) -> str:
    return f"the RabbitMQ user {user!r}" if user else "whoever sends without a verified RabbitMQ user"
