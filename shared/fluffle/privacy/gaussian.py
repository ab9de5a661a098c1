"""Gaussian differential privacy: which epsilon and delta follow from noise, and which noise from them. Pure.

A mechanism has Gaussian differential privacy with `mu` if telling two neighbours apart by all that it shows
is at least as hard as telling N(0, 1) and N(mu, 1) apart by one draw. With Gaussian noise mu is the
sensitivity divided by the noise's standard deviation, and nothing is lost in that: mechanisms one after the
other have the root of the sum of the squares of their mu, exactly.

Sources: Dong, Roth and Su, "Gaussian Differential Privacy" (2019, arXiv 1905.02383), sections 2 and 3; Balle
and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (2018, arXiv 1805.06530), Theorem 8.
"""

import math
from collections.abc import Callable


def delta_of(epsilon: float, mu: float) -> float:
    """Return Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): the smallest delta with an epsilon.

    The terms may be far too large or too close to each other for floats; here e^epsilon is never computed.
    The relative error is at most 5e-14 / mu, also where delta is 1e-15. Raises ValueError when epsilon is
    below 0 or mu is not above it.
    """
    if not (epsilon >= 0 and mu > 0):
        raise ValueError(f"epsilon must be at least 0 and mu above 0, not {epsilon} and {mu}")
    near = (epsilon / mu - mu / 2) / math.sqrt(2)
    far = (epsilon / mu + mu / 2) / math.sqrt(2)
    # far**2 - near**2 is epsilon, so e^epsilon erfc(far) is e^(-near**2) times the scaled erfc of far.
    return max(0.0, math.erfc(near) - math.exp(-near * near) * _scaled_erfc(far)) / 2


def epsilon_of(mu: float, delta: float) -> float:
    """Return the smallest epsilon with this delta, rounded up.

    Raises ValueError if mu is not above 0 or delta not in (0, 1).
    """
    _require_delta(delta)
    if delta_of(0.0, mu) <= delta:
        return 0.0
    return _boundary(lambda epsilon: delta_of(epsilon, mu) <= delta, unsafe=0.0, safe=_enough(mu, delta))


def mu_of(epsilon: float, delta: float) -> float:
    """Return the largest mu with this epsilon and delta, rounded down.

    Raises ValueError if epsilon is not above 0 or delta not in (0, 1).
    """
    _require_delta(delta)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be a number above 0, not {epsilon}")
    unsafe = 1.0
    while delta_of(epsilon, unsafe) <= delta:
        unsafe *= 2
    return _boundary(lambda mu: delta_of(epsilon, mu) <= delta, unsafe=unsafe, safe=0.0)


def guess_rate(mu: float) -> float:
    """Return how often whoever guesses which of two equally likely neighbours it was is right, at best.

    0.5 is what tossing a coin achieves. It is Phi(mu/2), from the trade-off of Dong, Roth and Su, section 2.
    """
    return math.erfc(-mu / 2 / math.sqrt(2)) / 2


def _enough(mu: float, delta: float) -> float:
    epsilon = 1.0
    while delta_of(epsilon, mu) > delta:
        epsilon *= 2
    return epsilon


def _boundary(is_safe: Callable[[float], bool], *, unsafe: float, safe: float) -> float:
    """Return the last safe number on the way from a safe to an unsafe one, to the last bit."""
    while True:
        middle = (safe + unsafe) / 2
        if middle in (safe, unsafe):
            return safe
        if is_safe(middle):
            safe = middle
        else:
            unsafe = middle


def _scaled_erfc(x: float) -> float:
    """Return e^(x*x) erfc(x) for x above 0."""
    if x < 10:
        return math.exp(x * x) * math.erfc(x)
    # The continued fraction of Abramowitz and Stegun, 7.1.14; so far out 30 terms are more than enough.
    fraction = x
    for term in range(30, 0, -1):
        fraction = x + term / 2 / fraction
    return 1 / (math.sqrt(math.pi) * fraction)


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, not {delta}")
