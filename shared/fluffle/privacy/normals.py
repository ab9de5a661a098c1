"""Random bits to normal numbers, the same ones on every machine. Pure.

numpy's logarithm and cosine differ in the last bit from one processor to another. Here are only additions,
multiplications, divisions and square roots, which IEEE 754 rounds in one way alone.

Source: Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics 37
(1988), routine PPND16: the quotients of polynomials below.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Each is a numerator and a denominator, highest power first.
CENTRE: Final = (
    (
        *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4),
        *(1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    ),
    (
        *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4),
        *(5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
    ),
)
TAIL: Final = (
    (
        *(7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1),
        *(1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0),
        *(4.63033784615654529590e0, 1.42343711074968357734e0),
    ),
    (
        *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2),
        *(1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0),
        *(2.05319162663775882187e0, 1.0),
    ),
)
FAR_TAIL: Final = (
    (
        *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3),
        *(2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0),
        *(5.46378491116411436990e0, 6.65790464350110377720e0),
    ),
    (
        *(2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5),
        *(7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1),
        *(5.99832206555887937690e-1, 1.0),
    ),
)
# No normal number of 64 bits is further from 0: the quantile of 2**-65.
LARGEST: Final = 9.2
LN_2: Final = 0.6931471805599453
SIGN: Final = np.uint64(2**63)
# A few arrays of so many float64 stay in the cache of one core. They are small enough for malloc to give the
# same memory again and again; larger ones it may return to the system each time.
PIECE: Final = 12_288
# 1/23, 1/21, ..., 1/3, 1: log(m) = 2 (s + s**3 / 3 + ...) with s = (m - 1) / (m + 1).
LOG_SERIES: Final = tuple(1 / odd for odd in range(23, 0, -2))


def normals_from(bits: NDArray[np.uint64], out: Floats | None = None) -> Floats:
    """Return the quantile of the normal distribution for each of these uniform numbers of 64 bits.

    The highest bit is the sign. The other bits say how much probability lies beyond the number, in units of
    2**-64, so the far tails are as fine as the centre. The quantiles are written to `out` if it is given,
    which may be the memory of the bits.
    """
    found = np.empty(bits.size) if out is None else out
    tails = [
        _centre(bits[start : start + PIECE], found[start : start + PIECE], start)
        for start in range(0, bits.size, PIECE)
    ]
    if tails:
        # All at once, as they are few in each piece.
        places = np.concatenate([places for places, _, _ in tails])
        quantiles = _tail(np.concatenate([beyond for _, beyond, _ in tails]))
        found[places] = _signed(quantiles, np.concatenate([signs for _, _, signs in tails]))
    return found


def _centre(
    bits: NDArray[np.uint64], found: Floats, start: int
) -> tuple[NDArray[np.intp], Floats, NDArray[np.uint64]]:
    """Write the quantiles that are not in a tail.

    Returns the places of the others, what lies beyond each, and its sign.
    """
    signs = bits & SIGN
    beyond = (bits ^ signs).astype(np.float64)
    beyond += 0.5
    beyond *= 2.0**-64
    from_median = 0.5 - beyond
    places = np.flatnonzero(from_median > 0.425)
    x = from_median * from_median
    np.multiply(_quotient(CENTRE, np.subtract(0.180625, x, out=x)), from_median, out=found)
    _signed(found, signs)
    return places + start, beyond[places], signs[places]


def _signed(quantiles: Floats, signs: NDArray[np.uint64]) -> Floats:
    """Give numbers above 0 their signs, in place."""
    as_bits = quantiles.view(np.uint64)
    np.bitwise_or(as_bits, signs, out=as_bits)
    return quantiles


def _tail(beyond: Floats) -> Floats:
    root = np.sqrt(-_log(beyond))
    found = _quotient(TAIL, root - 1.6)
    is_far = np.flatnonzero(root > 5)
    if is_far.size:
        found[is_far] = _quotient(FAR_TAIL, root[is_far] - 5)
    return found


def _log(numbers: Floats) -> Floats:
    """Return the natural logarithm of positive numbers."""
    mantissa, exponent = np.frexp(numbers)
    # From the root of 1/2 to that of 2, where the series needs the fewest terms.
    is_small = mantissa < 0.7071067811865476
    mantissa[is_small] *= 2
    s = (mantissa - 1) / (mantissa + 1)
    found = _polynomial(LOG_SERIES, s * s)
    found *= s
    found *= 2
    found += (exponent - is_small) * LN_2
    return found


def _quotient(both: tuple[Sequence[float], Sequence[float]], x: Floats) -> Floats:
    numerator, denominator = (_polynomial(each, x) for each in both)
    return np.divide(numerator, denominator, out=numerator)


def _polynomial(highest_first: Sequence[float], x: Floats) -> Floats:
    found = x * highest_first[0]
    found += highest_first[1]
    for coefficient in highest_first[2:]:
        found *= x
        found += coefficient
    return found
