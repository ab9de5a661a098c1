"""Sums and noise in whole steps, so that no digit of what is shown tells more than it should. Pure.

Sums of floats are rounded, and which floats a sum with noise can be depends on the sum without: both have
been used to break mechanisms that are private on paper. Therefore each update is clipped and rounded to whole
steps of one size, and so is the noise. Whole numbers add up without an error and in any order, so a worker
changes the sum by its own update and nothing else. What is shown is then a rounded sum of whole steps and a
normal number, and every step can come out, whatever the sum without noise is.

Sources: Mironov, "On Significance of the Least Significant Bits for Differential Privacy" (CCS 2012), for the
attack; Casacuberta et al., "Widespread Underestimation of Sensitivity in Differentially Private Libraries and
How to Fix It" (2022, arXiv 2207.10635), for that on sums of floats.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE

Steps = NDArray[np.int64]

# A standard deviation of the noise is 2**25 to 2**26 steps. Far fewer would cost precision; with far more, a
# step would have only a few of the normal numbers that float64 can tell apart.
NOISE_BITS: Final = 25
# For the errors of a norm, which may be 2**-18 of it off, of a product, and of a quotient.
SLACK: Final = 2.0**-17
# Here the numbers of float64 are 1 apart: a number that is added to it is rounded to a whole one, which then
# stands in the lowest bits.
WHOLE: Final = 1.5 * 2.0**52
WHOLE_BITS: Final = np.float64(WHOLE).view(np.int64)
# Up to here that holds, on both sides of 0.
MOST_STEPS: Final = 2.0**51


@dataclass(frozen=True, slots=True)
class Grid:
    """Whole steps of one size, for vectors of `size` elements that are clipped to an L2 norm of `clip`.

    Raises ValueError when the clip is so small beside the noise that rounding would take a tenth of it, or so
    large that it is 2**51 steps.
    """

    clip: float
    step: float
    size: int

    def __post_init__(self) -> None:
        if self.rounding > 0.1 * self.clip:
            raise ValueError(
                f"the clip of {self.clip:g} is lost in the noise of a model of {self.size} parameters: take "
                "a larger epsilon, fewer updates of each worker, or a smaller model"
            )
        if self.clip >= MOST_STEPS * self.step:
            raise ValueError(f"the noise is lost in the clip of {self.clip:g}: take a smaller epsilon")

    @classmethod
    def for_noise(cls, std: float, clip: float, size: int) -> Self:
        """Return the grid for noise of this standard deviation; its step is a power of two."""
        if not (math.isfinite(std) and std > 0 and math.isfinite(clip) and clip > 0):
            raise ValueError(f"noise and clip must be numbers above 0, not {std} and {clip}")
        return cls(clip, math.ldexp(1.0, math.frexp(std)[1] - 1 - NOISE_BITS), size)

    @property
    def rounding(self) -> float:
        """How much longer rounding can make a vector: each element moves by half a step at most."""
        return self.step * math.sqrt(self.size) / 2

    def add_clipped(self, total: Steps, blocks: Iterable[Vector], norm: float, weight: float = 1.0) -> None:
        """Add weight * vector to `total` in place, clipped and rounded: its norm is `clip` at most, exactly.

        The vector is given in blocks, with its L2 norm, at most 2**-18 of it off. It is clipped first, and
        then weighed. Raises ValueError when the norm is not finite, the weight is not in (0, 1], or the sizes
        differ.
        """
        if not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"an update whose norm is {norm} cannot be clipped")
        if not 0 < weight <= 1:
            raise ValueError(f"an update's weight must be above 0 and at most 1, not {weight}")
        room = self.clip * (1 - SLACK) - self.rounding
        scale = weight * min(1.0, room / norm if norm else 1.0) / self.step
        start, scratch = 0, np.empty(min(total.size, BLOCK_SIZE))
        for values in blocks:
            steps = np.multiply(values, scale, out=scratch[: values.size], dtype=np.float64)
            add_rounded(total[start : start + steps.size], steps)
            start += steps.size
        if start != total.size:
            raise ValueError(f"{start} elements cannot be added to {total.size}")

    def decode(self, total: Steps, divisor: float) -> Vector:
        """Return a sum in steps, divided by `divisor`, as float32.

        What it is divided by must not depend on what workers know alone, such as their examples.
        """
        decoded = np.empty(total.size, np.float32)
        for start in range(0, total.size, BLOCK_SIZE):
            block = slice(start, start + BLOCK_SIZE)
            decoded[block] = total[block] * (self.step / divisor)
        return decoded


def add_rounded(total: Steps, numbers: NDArray[np.float64]) -> None:
    """Add numbers to `total` in place, each rounded to a whole one, ties to even; overwrites the numbers.

    None may be further from 0 than MOST_STEPS. This rounds and converts with one addition, where `rint` and
    `astype` go through memory three times.
    """
    np.add(numbers, WHOLE, out=numbers)
    whole = numbers.view(np.int64)
    np.subtract(whole, WHOLE_BITS, out=whole)
    np.add(total, whole, out=total)
