"""A clip that follows the norms of the updates, at a known cost in privacy. Pure.

Each update that is not longer than the clip counts as one that fits. The share of those, with noise, moves
the clip towards the norm that a wanted share of updates does not exceed. For plain noise alone: correlated
noise needs one clip for the whole run. The aggregator clips, and workers do not: what they have clipped
always fits.

Source: Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping"
(2021, arXiv 1905.03871), Algorithm 1 and Theorem 1.
"""

import math
from typing import Final

from fluffle.errors import ConfigError

WANTED_SHARE: Final = 0.5
RATE: Final = 0.2
# The noise of the share is rounded to whole parts of one update.
PARTS: Final = 1024
# So far a clip may move: nothing that an update may hold is longer, and float32 has smaller numbers.
LEAST: Final = 2.0**-50
MOST: Final = 2.0**50


def count_noise(multiplier: float, buffer_size: int) -> float:
    """Return a standard deviation for the noise of the count that fits, where all noise has this multiplier.

    It is a twentieth of the buffer, as in the paper, but at least the multiplier: then the noise of the
    updates grows by 16 % at most.
    """
    return max(buffer_size / 20, multiplier)


def updates_multiplier(multiplier: float, count_std: float) -> float:
    """Return the multiplier of the updates' noise, so that both together are as private as `multiplier`.

    A worker changes the count by half an update: what it does not say counts as one half. Raises ConfigError
    when the noise of the count alone would spend the budget.
    """
    if multiplier >= 2 * count_std:
        raise ConfigError(
            f"the noise of the count that fits must be more than {multiplier / 2:g}, not {count_std:g}"
        )
    # No powers: they may differ in their last bit from machine to machine.
    return 1 / math.sqrt(1 / (multiplier * multiplier) - 1 / (4 * count_std * count_std))


def noisy_share(fitting: int, updates: int, buffer_size: int, count_std: float, normal: float) -> float:
    """Return the share of so many updates that fit the clip, with noise, from 0 to 1.

    `normal` is a standard normal number. The noise is rounded, so that its last digits tell nothing. Where a
    buffer is not full, what is missing counts as one half.
    """
    count = fitting + (buffer_size - updates) / 2 + round(normal * count_std * PARTS) / PARTS
    return min(1.0, max(0.0, count / buffer_size))


def next_clip(clip: float, share: float) -> float:
    """Return the clip for the next version, from the noisy share of updates that fit the last one."""
    return min(MOST, max(LEAST, clip * math.exp(-RATE * (share - WANTED_SHARE))))
