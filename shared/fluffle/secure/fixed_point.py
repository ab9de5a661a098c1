"""Real numbers as whole ones, which can be masked and added up without an error. Pure."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fluffle.model import Vector
from fluffle.secure.modulus import Modulus, Residues, Signed
from fluffle.vector_math import BLOCK_SIZE, norm

FEWEST_BITS: Final = 8
MOST_BITS: Final = 20


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Numbers from -clip to clip as whole numbers of so many `bits`, from -levels to levels.

    With `by_norm` a vector that is longer than `clip` is shortened to that length; otherwise each element is
    clipped by itself. Raises ValueError for bits from outside 8 to 20, and for a clip that is not positive.
    """

    clip: float
    bits: int
    by_norm: bool = True

    def __post_init__(self) -> None:
        if not FEWEST_BITS <= self.bits <= MOST_BITS:
            raise ValueError(f"must be {FEWEST_BITS} to {MOST_BITS} bits, not {self.bits}")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"the clip must be a number above 0, not {self.clip}")

    @property
    def levels(self) -> int:
        """The largest of the whole numbers."""
        return (1 << self.bits - 1) - 1

    def encode(self, vector: Vector, random: np.random.Generator) -> Residues:
        """Return a finite vector in whole numbers, rounded up or down at random: right on average.

        Source of the rounding: Alistarh et al., "QSGD" (2017, arXiv 1610.02132), section 3.1.
        """
        encoded = np.empty(vector.size, np.int32)
        scale = self._shrink(vector) * self.levels / self.clip
        for start in range(0, vector.size, BLOCK_SIZE):
            block = slice(start, start + BLOCK_SIZE)
            # In float64, in which a number of 20 bits leaves room for the chance.
            rounded = vector[block].astype(np.float64) * scale
            np.clip(rounded, -self.levels, self.levels, out=rounded)
            np.add(rounded, random.random(rounded.size), out=rounded)
            np.floor(rounded, out=rounded)
            np.minimum(rounded, self.levels, out=rounded)
            encoded[block] = rounded
        return encoded.view(np.uint32)

    def decode(self, total: Signed, divisor: float) -> Vector:
        """Return a sum of whole numbers, divided by `divisor`, as float32."""
        decoded = np.empty(total.size, np.float32)
        scale = self.clip / (self.levels * divisor)
        for start in range(0, total.size, BLOCK_SIZE):
            block = slice(start, start + BLOCK_SIZE)
            decoded[block] = total[block] * scale
        return decoded

    def _shrink(self, vector: Vector) -> float:
        """Return what a vector is multiplied by to be no longer than the clip."""
        if not self.by_norm:
            return 1.0
        length = norm(vector)
        return min(1.0, self.clip / length) if length else 1.0


def greatest_factor(modulus: Modulus, fixed_point: FixedPoint, count: int) -> int:
    """Return the greatest integer weight with which a sum of so many updates cannot leave the modulus.

    0 where not even a weight of 1 leaves room.
    """
    return ((1 << modulus.bits - 1) - 1) // (count * fixed_point.levels)
