"""Whether a noisy curve still improves, stands still, or has got worse for long. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final, Literal

# A curve of fewer points is not judged.
FEWEST: Final = 5
# A curve is flat when this many later points, and at least this share of all points, did not beat its best.
LONG: Final = 10
LONG_SHARE: Final = 0.25
SMOOTHED_OVER: Final = 5
# A change counts when it is more than this share of the value, and more than this many times what neighbours
# usually differ by.
RELATIVE_CHANGE: Final = 0.02
TIMES_THE_NOISE: Final = 3.0

Course = Literal["early", "improving", "flat", "worse"]


@dataclass(frozen=True, slots=True)
class Trend:
    """Where a curve goes: its course, the place of its best point, and how many points came after that.

    `was` and `now` are smoothed values: at its best, and at the end.
    """

    course: Course
    best: int
    since_best: int
    was: float
    now: float


def trend_of(values: Sequence[float], *, higher_is_better: bool) -> Trend | None:
    """Judge a curve by its finite values, in their order; None when there is none.

    It is *worse* when the smoothed curve (running medians) was better for LONG points than it is now, by
    more than neighbours usually differ; *flat* when nothing better came for long; *early* below FEWEST.
    """
    finite = [(place, value) for place, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        return None
    sign = 1.0 if higher_is_better else -1.0
    # From here on more is better.
    goodness = [sign * value for _, value in finite]
    best = max(range(len(goodness)), key=lambda place: goodness[place])
    since_best = len(goodness) - 1 - best
    smooth = [
        median(goodness[max(0, place + 1 - SMOOTHED_OVER) : place + 1]) for place in range(len(goodness))
    ]
    peak = max(range(len(smooth)), key=lambda place: smooth[place])
    course: Course
    if len(goodness) < FEWEST:
        course = "early"
    elif _has_fallen(goodness, smooth, peak):
        course = "worse"
    elif since_best >= max(LONG, LONG_SHARE * len(goodness)):
        course = "flat"
    else:
        course = "improving"
    return Trend(course, finite[best][0], since_best, sign * smooth[peak], sign * smooth[-1])


def _has_fallen(goodness: Sequence[float], smooth: Sequence[float], peak: int) -> bool:
    if len(smooth) - 1 - peak < LONG:
        return False
    steps = [abs(after - before) for before, after in pairwise(goodness)]
    # Most neighbours may be equal where the held-out data are few.
    noise = max(median(steps), sum(steps) / len(steps) / 2)
    fallen, deepest = smooth[peak] - smooth[-1], smooth[peak] - min(smooth[peak:])
    # A dip that is over by more than half is none that lasts.
    return fallen > max(RELATIVE_CHANGE * abs(smooth[peak]), TIMES_THE_NOISE * noise) and fallen > deepest / 2
