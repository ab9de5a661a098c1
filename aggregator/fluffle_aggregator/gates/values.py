"""Whether an update's numbers can be computed with: examples, and finite values of a usable size. Pure."""

import math

import numpy as np
from pydantic import BaseModel, Field

from fluffle.codecs.sealed import SealedVector
from fluffle.compression import decompressed
from fluffle.model import Vector, some_of
from fluffle.update import WeightUpdate
from fluffle.vector_math import largest_magnitude
from fluffle_aggregator.gates.gate import Gate, Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel

BAD_EXAMPLES = "bad-examples"
NOT_FINITE = "not-finite"
TOO_LARGE = "too-large"
# Squared (Adam's moments) and summed over a million updates it is still far below float32's largest, 2**128.
MAX_MAGNITUDE = float(2**50)


class ExampleLimits(BaseModel):
    """Limits on the number of examples that an update claims."""

    min_examples: int = Field(
        1, ge=1, description="Reject updates that were trained on fewer examples than this."
    )
    limit_examples: int = Field(
        1_000_000_000,
        ge=1,
        description="Reject updates that claim more examples than this, and answers to a survey that claim "
        "more rows.",
    )


def has_sound_values(limits: ExampleLimits) -> Gate:
    """Return the gate that lets an update pass when its numbers can be computed with."""

    def gate(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
        update = incoming.update
        # A masked update does not say how many examples it has, and a refresh is of none.
        has_examples = not (update.epoch or update.refresh)
        if has_examples and not limits.min_examples <= update.examples <= limits.limit_examples:
            return Refusal(
                BAD_EXAMPLES,
                f"the update claims {update.examples} examples; expected {limits.min_examples} to "
                f"{limits.limit_examples} (min_examples, limit_examples)",
            )
        largest = update.vector.magnitude_bound()
        if model.strategy.normalizes_steps:
            largest *= model.scale_of(update)
        if update.statistics.size:
            # NaN passes through numpy's maximum, but not through Python's.
            largest = float(np.maximum(largest, largest_magnitude(update.statistics)))
        if model.private and not largest <= MAX_MAGNITUDE:
            # The record has the refusal, and must not say more of the site's numbers.
            return Refusal(TOO_LARGE, "the update holds numbers that cannot be clipped")
        if not math.isfinite(largest):
            part = model.record.layout.tail(update.first_tensor)
            tensors = part.tensors_not_finite(_readable(update, model), update.statistics)
            return Refusal(NOT_FINITE, f"the update holds NaN or infinite values, in {some_of(tensors)}")
        if largest > MAX_MAGNITUDE:
            return Refusal(
                TOO_LARGE,
                f"the update holds {largest:.3g}; more than {MAX_MAGNITUDE:.3g} would overflow float32 when "
                "squared or summed up",
            )
        return incoming

    return gate


def _readable(update: WeightUpdate, model: GlobalModel) -> Vector:
    """Return the values of an update, with zeros where they are sealed."""
    vector = update.vector.tail
    if model.sealed and isinstance(vector, SealedVector):
        return model.sealed.part.with_open(vector.open.values)
    return decompressed(vector)
