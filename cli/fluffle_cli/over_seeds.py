"""What several seeds gave together: medians and ranges, speed-ups over a baseline, bands of curves. Pure.

A run that never held its target counts with an infinite time, so that it is never missing: the median of
three runs of which two do not hold the target is that they do not.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median, median_high
from typing import Final

from fluffle_cli.held import RESOLUTION_S

# What is said of a run that never held its target where there is little room.
NEVER_IN_WORDS: Final = "never"


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, the least and the largest; a run that never held has an infinite value."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Sum values up; None when there are none, or any is unknown (NaN)."""
        if not values or any(map(math.isnan, values)):
            return None
        return cls(median(values), min(values), max(values))

    def in_words(self, say: Callable[[float], str], *, never: str = NEVER_IN_WORDS) -> str:
        """Return "12.3 (10.1 to 15.0)"; `never` is said for a median that is infinite."""

        def said(value: float, instead: str) -> str:
            return say(value) if math.isfinite(value) else instead

        middle = said(self.median, never)
        if self.least == self.largest:
            return middle
        return f"{middle} ({said(self.least, NEVER_IN_WORDS)} to {said(self.largest, NEVER_IN_WORDS)})"


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast as a baseline something holds its target: the ratio of their seconds.

    It is 0 when the target was never held. When only the baseline never held it, the ratio is at least this
    much (`is_bound`): the baseline then counts with the seconds for which it was watched.
    """

    times: float
    is_bound: bool = False

    @classmethod
    def of(cls, seconds: float, *, baseline_s: float, watched_s: float) -> "Speedup":
        """Compare the seconds until the target held, infinite where it never did.

        `watched_s` is how long the baseline was watched.
        """
        if math.isinf(seconds):
            return cls(0.0)
        # A target that the first weights reach is held from 0 s on.
        mine, theirs = (max(each, RESOLUTION_S) for each in (seconds, min(baseline_s, watched_s)))
        return cls(theirs / mine, math.isinf(baseline_s))

    def __str__(self) -> str:
        if not self.times:
            return NEVER_IN_WORDS
        return f"{'at least ' if self.is_bound else ''}{self.times:.1f}"


def median_speedup(found: Sequence[Speedup]) -> Speedup:
    """Return the median of at least one; it is a bound if one in the middle or below is a bound."""
    times = [each.times for each in found]
    return Speedup(median(times), any(each.is_bound and each.times <= median_high(times) for each in found))


def worst_speedup(found: Sequence[Speedup]) -> Speedup:
    """Return the least of at least one."""
    return min(found, key=lambda each: (each.times, each.is_bound))


def band(
    curves: Sequence[Sequence[tuple[float, float]]],
) -> list[tuple[float, float, float, float]]:
    """Return (seconds, median, least, largest) of several curves, wherever one of them has a new value.

    A value counts until the next one of its curve, and the last one to the end. The band begins when each
    curve has a value, and leaves out times at which a value is not finite.
    """
    if not curves or not all(curves):
        return []
    begins = max(curve[0][0] for curve in curves)
    times = [[seconds for seconds, _ in curve] for curve in curves]
    points = []
    for now in sorted({seconds for seconds in chain.from_iterable(times) if seconds >= begins}):
        values = [
            curve[bisect_right(seconds, now) - 1][1] for curve, seconds in zip(curves, times, strict=True)
        ]
        if all(map(math.isfinite, values)):
            points.append((now, median(values), min(values), max(values)))
    return points
