"""How far one update may move the model, against the updates before it. Pure.

It follows from the norms in the model's record: a new leader decides as the one before it.
"""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.tail import tail_of
from fluffle.compression import CompressedVector, decompressed
from fluffle.model import Vector
from fluffle.vector_math import matching_blocks
from fluffle_aggregator.gates.gate import Gate, Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.norms import norm_of

LARGE_NORM = "large-norm"
# Fewer norms than these say little about what is usual.
FEWEST_NORMS = 10


class NormLimit(BaseModel):
    """A limit on the norm of an update; None is no limit."""

    limit_norm: float | None = Field(
        None,
        gt=1,
        description="Limit the norm of an update to this many times the median of the last 101 accepted "
        "updates, such as 10. Disabled if unset.",
    )
    on_large_norm: Literal["reject", "clip"] = Field(
        "reject",
        description="What to do with an update above limit_norm: reject it, or scale it down to the limit.",
    )


def within_norm(factor: float, on_large: Literal["reject", "clip"]) -> Gate:
    """Return the gate that refuses or clips an update that would move the model too far."""

    def gate(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
        # A part of the model is compared as it is: it may not move the model further than a whole update.
        update, known = incoming.update, incoming.update.vector.tail
        base = model.vector[update.vector.start :] if update.sends == "weights" else None
        norm = model.scale_of(update) * norm_of(known, base)
        bound = norm_bound(model.norms, factor)
        if norm <= bound:
            return replace(incoming, norm=norm)
        if on_large == "clip":
            short = tail_of(update.vector.size, Float32Vector.of(shortened(known, bound / norm, base)))
            clipped = replace(update, codec="float32", vector=short)
            return replace(incoming, update=clipped, norm=bound, norm_before=norm)
        return Refusal(
            LARGE_NORM,
            f"the update would move the model by a norm of {norm:.4g}; at most {bound:.4g} is allowed, "
            f"{factor:g} times the median of the last {len(model.norms)} (limit_norm)",
        )

    return gate


def norm_bound(norms: tuple[float, ...], factor: float) -> float:
    """Return the largest norm to admit: `factor` times the median of those before, or infinity.

    There is no bound before FEWEST_NORMS are known, nor when most of them are zero: it would let in nothing.
    """
    if len(norms) < FEWEST_NORMS:
        return math.inf
    return factor * float(np.median(norms)) or math.inf


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
