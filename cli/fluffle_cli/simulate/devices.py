"""How long simulated devices take for their rounds. Pure: the random generator is an argument."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from fluffle_aggregator.choices import parse_choice

Seconds = NDArray[np.float64]
# So many rounds are drawn at a time.
BLOCK = 1024


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


def half_normal(
    random: np.random.Generator, count: int, *, scale: float = 1.0, least: float = 0.0
) -> Seconds:
    """Draw least + |N(0, scale^2)|, in seconds for a whole round; the mean is least + 0.8 * scale.

    Source: FLSim, the simulator of FedBuff's experiments (Nguyen et al. 2022, arXiv 2106.06639, section 5):
    PerUserHalfNormalDurationDistribution with training_duration_sd and training_duration_min. It draws anew
    for each round of a device, which does not depend on the number of examples.
    """
    return least + np.abs(random.normal(0.0, scale, count))


def lognormal(random: np.random.Generator, count: int, *, median: float = 1.0, sigma: float = 0.6) -> Seconds:
    """Draw median * exp(sigma * N(0, 1)), infinity where that is too large for a float."""
    with np.errstate(over="ignore"):
        return median * np.exp(sigma * random.normal(size=count))


def exponential(random: np.random.Generator, count: int, *, mean: float = 1.0) -> Seconds:
    """Draw from an exponential distribution."""
    return random.exponential(mean, count)


def zipf(
    random: np.random.Generator, count: int, *, seconds: float = 1.0, exponent: float = 1.2, most: int = 60
) -> Seconds:
    """Draw seconds * k, where k has a Zipf distribution: P(k) is proportional to k ** -exponent, k = 1..most.

    Without a bound the mean would be infinite for exponents up to 2. Raises ValueError when `most` is 0.
    """
    if most < 1:
        raise ValueError("must be zipf[:seconds][:exponent][:most]; most must be at least 1, not 0")
    shares = np.cumsum(np.arange(1, most + 1, dtype=np.float64) ** -exponent)
    drawn = 1 + np.searchsorted(shares, random.uniform(0, shares[-1], count), side="right")
    return drawn.astype(np.float64) * seconds


DISTRIBUTIONS: Mapping[str, Callable[..., Seconds]] = {
    "constant": constant,
    "spread": spread,
    "tiers": tiers,
    "half-normal": half_normal,
    "lognormal": lognormal,
    "exponential": exponential,
    "zipf": zipf,
}
# In these, each device draws by itself, so that a device may draw again for each of its rounds.
DRAWN = ("half-normal", "lognormal", "exponential", "zipf")


def seconds_of_devices(text: str, count: int, random: np.random.Generator) -> Seconds:
    """Return the seconds of `count` devices for a setting such as "lognormal:1:0.6".

    Raises ValueError, which lists what is known.
    """
    name, parameters = parse_choice(text, DISTRIBUTIONS)
    return DISTRIBUTIONS[name](random, count, **dict(parameters))


def seconds_of_rounds(text: str, random: np.random.Generator) -> Iterator[float]:
    """Draw the seconds of one round after the other, without end.

    Raises ValueError when the devices of this setting are not drawn, such as those of "spread".
    """
    if text.partition(":")[0] not in DRAWN:
        raise ValueError(f"must be one of {', '.join(DRAWN)}, not {text!r}: nothing is drawn there")
    blocks = (seconds_of_devices(text, BLOCK, random).tolist() for _ in repeat(None))
    return chain.from_iterable(blocks)
