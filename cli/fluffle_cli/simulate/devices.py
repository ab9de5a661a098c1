"""How long simulated devices take for their rounds. Pure: the random generator is an argument."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fluffle_aggregator.choices import parse_choice

Seconds = NDArray[np.float64]


def constant(_random: np.random.Generator, count: int, *, seconds: float = 1.0) -> Seconds:
    """Give every device the same."""
    return np.full(count, seconds)


def spread(_random: np.random.Generator, count: int, *, fastest: float = 0.25, times: float = 8.0) -> Seconds:
    """Give the devices a geometric series, the last one `times` as much as the first, as the demo does."""
    return fastest * times ** (np.arange(count) / max(1, count - 1))


def tiers(
    _random: np.random.Generator, count: int, *, fast: float = 1.0, middle: float = 2.0, slow: float = 4.0
) -> Seconds:
    """Deal three classes of devices out in turn."""
    return np.array([fast, middle, slow])[np.arange(count) % 3]


def half_normal(random: np.random.Generator, count: int, *, scale: float = 1.0) -> Seconds:
    """Draw |N(0, scale^2)|, as the experiments of FedBuff do (2022, arXiv 2106.06639, section 5)."""
    return np.abs(random.normal(0.0, scale, count))


def lognormal(random: np.random.Generator, count: int, *, median: float = 1.0, sigma: float = 0.6) -> Seconds:
    """Draw median * exp(sigma * N(0, 1))."""
    return median * np.exp(sigma * random.normal(size=count))


def exponential(random: np.random.Generator, count: int, *, mean: float = 1.0) -> Seconds:
    """Draw from an exponential distribution."""
    return random.exponential(mean, count)


DISTRIBUTIONS: Mapping[str, Callable[..., Seconds]] = {
    "constant": constant,
    "spread": spread,
    "tiers": tiers,
    "half-normal": half_normal,
    "lognormal": lognormal,
    "exponential": exponential,
}


def seconds_of_devices(text: str, count: int, random: np.random.Generator) -> Seconds:
    """Return the seconds of `count` devices for a setting such as "lognormal:1:0.6".

    Raises ValueError, which lists what is known.
    """
    name, parameters = parse_choice(text, DISTRIBUTIONS)
    return DISTRIBUTIONS[name](random, count, **dict(parameters))


def require_distribution(text: str) -> None:
    """Raise ValueError unless a setting can be read by `seconds_of_devices`."""
    parse_choice(text, DISTRIBUTIONS)
