"""The L2 norm of an update, to which it is limited or clipped. Pure."""

import math
from typing import Final

import numpy as np

from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.vector_math import norm_in_float64, side_by_side, squared_length

# Where products of float32 have not lost all their digits.
LEAST_SQUARE: Final = 2.0**-80


def norm_of(vector: CompressedVector, base: Vector | None = None) -> float:
    """Return the L2 norm of a vector, or of its difference from `base`, summed up in float64."""
    if base is None:
        return norm_in_float64(vector.blocks())
    return norm_in_float64(
        np.subtract(values, origin, dtype=np.float64)
        for origin, values in side_by_side(base, vector.blocks())
    )


def quick_norm_of(vector: CompressedVector) -> float:
    """Return the L2 norm of a vector, in half the time, and at most 2**-18 of it off.

    Products are rounded to float32, and a block's are summed up by at most 75 additions in a row: each rounds
    by at most 2**-24. A norm whose square is too small or too large for float32 is taken as `norm_of` has it.
    """
    square = squared_length(vector.blocks())
    return math.sqrt(square) if LEAST_SQUARE <= square < math.inf else norm_of(vector)
