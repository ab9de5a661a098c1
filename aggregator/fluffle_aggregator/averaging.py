"""The running average of the versions, which is evaluated and exported in place of the newest one. Pure.

With stale updates and skewed data the versions jump to and fro around a good model; their average lies
inside. Averaging changes no training: workers start from the version itself.
"""

import numpy as np

from fluffle.model import Vector
from fluffle.vector_math import matching_blocks, scratch_block


def decay_at(decay: float, version: int) -> float:
    """Return what the average keeps of itself when the version after `version` is added to it, in [0, 1).

    It is min(decay, (1 + t) / (10 + t)) with t = `version`. With the decay alone, version 0 would hold the
    average back for 1 / (1 - decay) versions and more. As long as the other is lower, this is the
    polynomial-decay average with eta = 8 of Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth
    Optimization" (2013, arXiv 1212.1824), section 4, in which the weight of version 0 falls with t ** -9.
    """
    return min(decay, (1 + version) / (10 + version))


def move_average(average: Vector, vector: Vector, decay: float) -> None:
    """Move the average to decay * average + (1 - decay) * vector, in place; both are float32 of one size.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992); with a decay,
    Morales-Brotons, Vogels and Hendrikx, "Exponential Moving Average of Weights in Deep Learning" (2024,
    arXiv 2411.18704). Raises ValueError when the sizes differ.
    """
    share, scratch = np.float32(1.0 - decay), scratch_block(average.size)
    for kept, added in matching_blocks(average, vector):
        change = np.subtract(added, kept, out=scratch[: kept.size])
        np.add(kept, np.multiply(change, share, out=change), out=kept)
