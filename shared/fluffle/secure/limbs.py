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


def digits_for(whole_bits: int, bits: int) -> int:
    """Return how many digits, in a base of 2**(bits - 1), a whole number below 2**whole_bits takes."""
    return -(-(whole_bits + 1) // (bits - 1))


def limbs_per_value(bits: int) -> int:
    """Return how many numbers of so many bits a statistic takes."""
    return digits_for(WHOLE_BITS, bits)


def largest_digit(bits: int) -> int:
    """Return the largest magnitude of a digit."""
    return 1 << bits - 2


def largest_in(digits: Signed) -> int:
    """Return the largest magnitude of sums of digits; 0 of none."""
    return int(np.max(np.abs(digits.astype(np.int64)), initial=0))


def digits_of(whole: NDArray[np.int64] | NDArray[np.object_], count: int, bits: int) -> NDArray[np.int32]:
    """Return whole numbers [size] as digits [count, size], the lowest ones first.

    Each is from -2**(bits - 2) to 2**(bits - 2) - 1.
    """
    base, half = 1 << bits - 1, largest_digit(bits)
    digits = np.empty((count, whole.size), np.int32)
    for row in digits:
        row[:] = ((whole + half) % base) - half
        whole = (whole - row) // base
    return digits


def encode_limbs(values: NDArray[np.floating], bits: int) -> Residues:
    """Return float [size] as uint32 [limbs * size]: the lowest digits of all values, then the next ones.

    A value beyond 2**36 is clipped to that.
    """
    clipped = np.clip(values.astype(np.float64), -LARGEST, LARGEST)
    whole = np.rint(clipped * 2.0**FRACTION_BITS).astype(np.int64)
    return digits_of(whole, limbs_per_value(bits), bits).reshape(-1).view(np.uint32)


def decode_limbs(total: Signed, bits: int) -> NDArray[np.float64]:
    """Return a sum of such numbers, int32 [limbs * size], as the sum of the values, float64 [size]."""
    digits = total.reshape(limbs_per_value(bits), -1)
    values = np.zeros(digits.shape[1])
    for place, row in enumerate(digits):
        values += row * 2.0 ** (place * (bits - 1) - FRACTION_BITS)
    return values
