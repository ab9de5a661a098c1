"""How much of a version one worker may decide. Pure.

It follows from the model's state alone, which is in its record: a new leader decides as the one before it.
"""

from collections import defaultdict
from dataclasses import replace

from pydantic import BaseModel, Field

from fluffle_aggregator.gates.gate import Gate, Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel

OVER_SHARE = "over-share"
PART_AND_SHARE = "part-and-share"
# A share such as 0.29 of 100 lies a little below the number that is meant.
ROUNDING = 1e-9
# Of equal workers, some are a little ahead at any moment.
EQUAL_SHARES = 1.5


class ShareLimit(BaseModel):
    """A limit on one worker's share of the weight; None is no limit."""

    limit_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest share of the total weight for one worker: in a full buffer (fedbuff), or in the "
        "last 50 updates (buffers of 1, as with fedasync). Unlimited if unset.",
    )


def within_share_of_the_buffer(most: float) -> Gate:
    """Return the gate that lets one update of a worker into each buffer, and more up to its share."""

    def gate(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
        worker, strategy = incoming.update.id.worker, model.strategy
        if refusal := _refusal_of_a_part(incoming):
            return refusal
        if worker not in model.in_buffer:
            return incoming
        one = model.weigh(incoming.update)
        # What the buffer would weigh if it were full of fresh updates of as many examples as those in it.
        held = model.accumulator.totals
        full = (held.divisor + one.divisor) * strategy.buffer_size / (held.count + 1)
        weight = model.in_buffer[worker] + one.factor
        if weight <= most * full * (1 + ROUNDING):
            return incoming
        return Refusal(
            OVER_SHARE,
            f"with this update, worker {worker} would have a weight of {weight:.3g} in a buffer of {full:g}; "
            f"its share is at most {most:g} (limit_share)",
        )

    return gate


def within_share_of_the_last_updates(most: float) -> Gate:
    """Return the gate for strategies whose buffer is one update.

    Where few workers are at work, somewhat more than an equal share is always allowed. Refused updates move
    the window on too: a worker whose neighbours have left is not held up for long.
    """

    def gate(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
        worker = incoming.update.id.worker
        if refusal := _refusal_of_a_part(incoming):
            return refusal
        weights: defaultdict[str, float] = defaultdict(float)
        for sender, weight in model.window:
            if weight:
                weights[sender] += weight
        allowed = max(most, EQUAL_SHARES / max(1, len(weights)))
        share = weights.get(worker, 0.0) / (sum(weights.values()) or 1.0)
        if share <= allowed * (1 + ROUNDING):
            return replace(incoming, is_share_limited=True)
        return Refusal(
            OVER_SHARE,
            f"worker {worker} has {share:.0%} of the weight of the last {len(model.window)} updates; its "
            f"share is at most {allowed:.0%} (limit_share)",
        )

    return gate


def _refusal_of_a_part(incoming: Incoming) -> Refusal | None:
    """Return why an update of a part is refused: shares are those of the weight of whole updates."""
    if not incoming.update.first_tensor:
        return None
    return Refusal(
        PART_AND_SHARE,
        "the update has a part of the model, and limit_share is set: where some workers send a part, others "
        "have a larger share of the first layers than the limit says; leave out limit_share here, or "
        "train_share at the worker",
    )
