"""Which combination of settings is the best, and whether the margin is more than chance. Pure.

Two combinations are compared seed by seed: the same seed gives both the same data, first weights and
devices, so the ratio of their times varies less than the times do. Of the logarithms of these ratios,
Student's t gives an interval ("The probable error of a mean", Biometrika 1908); it is exact where they are
normal. As the best one is compared with all others, each interval gets its part of the 5 % (Bonferroni;
Dunn, "Multiple comparisons among means", JASA 1961): all of them together hold in 95 of 100 sweeps.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, median, stdev
from typing import Final

from fluffle_cli.held import RESOLUTION_S

CONFIDENCE: Final = 0.95
MOST_SEEDS: Final = 1000
# Two ratios may be equal by chance, as rounds take whole multiples of some time.
FEWEST_PAIRS: Final = 3
# The seconds to the target of each seed; infinite where it was not held.
Times = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Margin:
    """How many times as long one combination takes as another: a geometric mean over paired seeds.

    `low` and `high` are the ends of the interval, 0 and infinity where there are too few pairs. `more_seeds`
    is how many more might be needed until the interval leaves out 1: 0 if it does already, None if no number
    is in sight.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    more_seeds: int | None

    @property
    def is_told(self) -> bool:
        """Whether the margin is more than chance: the interval leaves out 1."""
        return self.low > 1 or self.high < 1


def margin(slower: Times, faster: Times, *, limit_s: float, comparisons: int = 1) -> Margin | None:
    """Compare two combinations over the seeds that both have; None when there is no such seed.

    A run that never held the target counts with `limit_s`, for which all were watched: it is at least as slow
    as that, and two such runs are equal. `comparisons` is how many intervals are to hold together.
    """
    both = sorted(slower.keys() & faster.keys())
    logs = [_log(min(slower[seed], limit_s)) - _log(min(faster[seed], limit_s)) for seed in both]
    if not logs:
        return None
    count, mean, level = len(logs), fmean(logs), 1 - (1 - CONFIDENCE) / max(1, comparisons)
    deviation = stdev(logs) if count >= FEWEST_PAIRS else math.inf
    half = _half_width(level, count, deviation)
    told = Margin(_exp(mean), _exp(mean - half), _exp(mean + half), count, 0)
    if told.is_told:
        return told
    wanted = range(count + 1, MOST_SEEDS + 1)
    # The more seeds, the narrower.
    place = bisect_left(wanted, True, key=lambda seeds: _half_width(level, seeds, deviation) < abs(mean))
    return replace(told, more_seeds=place + 1 if place < len(wanted) else None)


def ranked(times: Sequence[Times], *, limit_s: float) -> list[int]:
    """Return the places of the combinations that have times, the best first: by the median time.

    Ties, such as those of combinations that mostly do not hold the target, go by the mean of the logarithms.
    """

    def order(place: int) -> tuple[float, float]:
        values = list(times[place].values())
        return median(values), fmean(_log(min(each, limit_s)) for each in values)

    return sorted((place for place, each in enumerate(times) if each), key=order)


@cache
def t_quantile(confidence: float, degrees: int) -> float:
    """Return the t that |T| does not exceed with this probability, for Student's T of so many degrees.

    It inverts the finite sums for P(|T| <= t) in Abramowitz and Stegun, "Handbook of Mathematical Functions"
    (1964), 26.7.3 and 26.7.4.
    """
    # As an angle, with tan(angle) = t / sqrt(degrees), so that all of it lies between 0 and pi/2.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _probability(angle: float, degrees: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees % 2:
        term, total = cosine, 0.0
        for each in range(3, degrees + 1, 2):
            total += term
            term *= cosine**2 * (each - 1) / each
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for each in range(2, degrees + 1, 2):
        total += term
        term *= cosine**2 * (each - 1) / each
    return sine * total


def _half_width(confidence: float, count: int, deviation: float) -> float:
    return t_quantile(confidence, count - 1) * deviation / math.sqrt(count) if count > 1 else math.inf


def _exp(value: float) -> float:
    # The interval of few pairs may be wider than numbers are.
    return math.exp(value) if value < 700 else math.inf


def _log(seconds: float) -> float:
    return math.log(max(seconds, RESOLUTION_S))
