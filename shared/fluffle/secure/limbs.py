"""Statistics as whole numbers: values of any usual size, as several small numbers each. Pure.

A statistic, such as a moving variance, travels as a value and has no clip. It becomes a whole multiple of
2**-24, below 2**60, whose digits in a base of 2**(bits - 1) are as small as the numbers of a delta. Each
digit is added up by itself, and no sum of digits leaves the modulus where no sum of deltas does.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fluffle.secure.modulus import Residues, Signed

FRACTION_BITS: Final = 24
WHOLE_BITS: Final = 60
LARGEST: Final = float(2 ** (WHOLE_BITS - FRACTION_BITS))


def limbs_per_value(bits: int) -> int:
    """Return how many numbers of so many bits a statistic takes."""
    return -(-(WHOLE_BITS + 1) // (bits - 1))


def largest_digit(bits: int) -> int:
    """Return the largest magnitude of a digit."""
    return 1 << bits - 2


def encode_limbs(values: NDArray[np.floating], bits: int) -> Residues:
    """Return float [size] as uint32 [limbs * size]: the lowest digits of all values, then the next ones.

    A value beyond 2**36 is clipped to that.
    """
    clipped = np.clip(values.astype(np.float64), -LARGEST, LARGEST)
    whole = np.rint(clipped * 2.0**FRACTION_BITS).astype(np.int64)
    base, half = np.int64(1 << bits - 1), np.int64(largest_digit(bits))
    digits = np.empty((limbs_per_value(bits), values.size), np.int32)
    for row in digits:
        # From -half to half - 1.
        row[:] = ((whole + half) % base) - half
        whole = (whole - row) // base
    return digits.reshape(-1).view(np.uint32)


def decode_limbs(total: Signed, bits: int) -> NDArray[np.float64]:
    """Return a sum of such numbers, int32 [limbs * size], as the sum of the values, float64 [size]."""
    digits = total.reshape(limbs_per_value(bits), -1)
    values = np.zeros(digits.shape[1])
    for place, row in enumerate(digits):
        values += row * 2.0 ** (place * (bits - 1) - FRACTION_BITS)
    return values
