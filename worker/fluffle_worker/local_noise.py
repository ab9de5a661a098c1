"""All the noise of differential privacy, which a worker adds to each of its updates before it leaves.

Whoever sees the updates, the aggregator and the broker too, sees them with this noise alone. Clip, noise and
their whole steps are those of `fluffle.privacy.grid`, and the random bits those of the operating system.
"""

import os
from collections.abc import Callable
from typing import Final

import numpy as np

from fluffle.model import Layout, Vector
from fluffle.plan import Plan
from fluffle.privacy.grid import Grid, add_rounded
from fluffle.privacy.normals import normals_from
from fluffle.privacy.plan import PrivacyPlan
from fluffle.vector_math import BLOCK_SIZE, matching_blocks, norm_in_float64

BITS_BYTES: Final = 8
SLACK: Final = 1e-9
# Returns so many random bytes.
Draw = Callable[[int], bytes]


def with_noise(vector: Vector, promised: PrivacyPlan, draw: Draw = os.urandom) -> Vector:
    """Return a vector clipped, with noise in each element; it is only read.

    Raises ValueError when it has no finite norm, or when noise would hide all.
    """
    grid = Grid.for_noise(promised.std, promised.clip, vector.size)
    steps = np.zeros(vector.size, np.int64)
    blocks = [block for (block,) in matching_blocks(vector)]
    grid.add_clipped(steps, blocks, norm_in_float64(blocks))
    for start in range(0, steps.size, BLOCK_SIZE):
        piece = steps[start : start + BLOCK_SIZE]
        bits = np.frombuffer(draw(piece.size * BITS_BYTES), np.uint64)
        noise = normals_from(bits)
        noise *= promised.std / grid.step
        add_rounded(piece, noise)
    return grid.decode(steps, 1.0)


def why_not_local(promised: PrivacyPlan, plan: Plan, layout: Layout) -> str:
    """Return why noise by this plan would not keep to what is promised; empty if it does.

    A worker asks this for itself: the aggregator that has made the plan is not to be trusted.
    """
    if plan.sends != "delta":
        return "it wants weights, and the noise is for deltas"
    if layout.statistics_size:
        return "there is no noise for averages of the site's data, and the model has some"
    if promised.bands != 1 or promised.count_std is not None or promised.shares:
        return "its noise is not that of single updates"
    spent = promised.epsilon_after(promised.updates)
    if spent > promised.epsilon * (1 + SLACK):
        return f"after {promised.updates} updates epsilon is {spent:g}"
    try:
        Grid.for_noise(promised.std, promised.clip, layout.size)
    except ValueError as error:
        return str(error)
    return ""
