"""The L2 norm of an update, to which it is limited or clipped. Pure."""

import math
from itertools import repeat
from typing import Final

import numpy as np

from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, side_by_side, squared_length

# Where products of float32 have not lost all their digits.
LEAST_SQUARE: Final = 2.0**-80


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


def quick_norm_of(vector: CompressedVector) -> float:
    """Return the L2 norm of a vector, in half the time, and at most 2**-18 of it off.

    Products are rounded to float32, and a block's are summed up by at most 75 additions in a row: each rounds
    by at most 2**-24. A norm whose square is too small or too large for float32 is taken as `norm_of` has it.
    """
    square = squared_length(vector.blocks())
    return math.sqrt(square) if LEAST_SQUARE <= square < math.inf else norm_of(vector)
