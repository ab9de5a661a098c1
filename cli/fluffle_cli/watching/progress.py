"""Whether a federation's model still improves, judged by the metric that says which version is best. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Final, Literal

from fluffle_cli.history import EvaluatedVersion
from fluffle_cli.watching.view import FederationView
from fluffle_cli.words import count, number

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
    """Where a noisy curve goes, and the place of its best point.

    `was` and `now` are smoothed values: at its best, and at the end.
    """

    course: Course
    best: int
    was: float
    now: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether the model still improves: a word for programs, and a sentence."""

    state: Course | Literal["unknown", "not finite"]
    says: str


def progress_of(view: FederationView) -> Progress:
    """Judge whether the model still improves, by the evaluations that were seen if they are enough."""
    newest, best, yardstick = view.evaluation, view.best, view.yardstick
    if newest is None:
        said = "No version was evaluated." if view.is_over else "No version is evaluated yet."
        return Progress("unknown", said)
    value = newest.metrics.get(view.metric or "", 0.0)
    if not math.isfinite(value):
        return Progress("not finite", f"{view.metric} of version {newest.version} is {number(value)}.")
    if yardstick is None or best is None:
        names = ", ".join(newest.metrics) or "there is no metric"
        return Progress("unknown", f"Nothing says whether more or less is better ({names}).")
    metric, last = yardstick.metric, newest.version
    found = trend_of_metric(view, metric, higher_is_better=yardstick.higher_is_better)
    if found and len(view.evaluations) >= FEWEST:
        trend, best = found
        course, last = trend.course, view.evaluations[-1].version
        if course == "worse":
            return Progress("worse", worse_in_words(metric, yardstick.higher_is_better, *found))
        if course == "flat":
            has = "did not improve in the last" if view.is_over else "has not improved for"
            behind = count(last - best.version, "version")
            return Progress("flat", f"{metric} {has} {behind}, since version {best.version}.")
    elif last == 0:
        return Progress("early", "Only version 0 is evaluated, which nobody has trained.")
    else:
        # By the record of the newest version alone.
        behind_by = last - best.version
        course = "improving" if behind_by <= 0 else "flat" if behind_by >= max(LONG, last / 2) else "early"
    said = f"{metric} was best at version {best.version} of {last}."
    if last <= best.version:
        said = f"The {'last' if view.is_over else 'newest'} evaluated version is the best one."
    return Progress(course, said)


def trend_of_metric(
    view: FederationView, metric: str, *, higher_is_better: bool
) -> tuple[Trend, EvaluatedVersion] | None:
    """Return where a metric of the evaluations goes, and its best evaluation; None when none is known."""
    points = [each for each in view.evaluations if metric in each.metrics]
    trend = trend_of([each.metrics[metric] for each in points], higher_is_better=higher_is_better)
    return None if trend is None else (trend, points[trend.best])


def worse_in_words(metric: str, higher_is_better: bool, trend: Trend, best: EvaluatedVersion) -> str:
    """Say that a metric got worse, from when and by how much."""
    moved = "has fallen" if higher_is_better else "has risen"
    since = f"since version {best.version}"
    return f"{metric} {moved} from about {number(trend.was)} to {number(trend.now)} {since}."


def trend_of(values: Sequence[float], *, higher_is_better: bool) -> Trend | None:
    """Judge a curve by its finite values, in their order; None when there is none.

    It is *worse* when the smoothed curve (running medians) was better for LONG points than it is now, by
    more than neighbours usually differ; *flat* when nothing better came for long; *early* below FEWEST.
    """
    sign = 1.0 if higher_is_better else -1.0
    places = [place for place, value in enumerate(values) if math.isfinite(value)]
    # From here on more is better.
    goodness = [sign * values[place] for place in places]
    if not goodness:
        return None
    best = goodness.index(max(goodness))
    smooth = [median(goodness[max(0, end - SMOOTHED_OVER) : end]) for end in range(1, len(goodness) + 1)]
    peak = smooth.index(max(smooth))
    course: Course = "improving"
    if len(goodness) < FEWEST:
        course = "early"
    elif _has_fallen(goodness, smooth, peak):
        course = "worse"
    elif len(goodness) - 1 - best >= max(LONG, LONG_SHARE * len(goodness)):
        course = "flat"
    return Trend(course, places[best], sign * smooth[peak], sign * smooth[-1])


def _has_fallen(goodness: Sequence[float], smooth: Sequence[float], peak: int) -> bool:
    if len(smooth) - 1 - peak < LONG:
        return False
    steps = [abs(after - before) for before, after in pairwise(goodness)]
    # Most neighbours may be equal where the held-out data are few.
    noise = max(median(steps), fmean(steps) / 2)
    fallen, deepest = smooth[peak] - smooth[-1], smooth[peak] - min(smooth[peak:])
    # A dip that is over by more than half is none that lasts.
    return fallen > max(RELATIVE_CHANGE * abs(smooth[peak]), TIMES_THE_NOISE * noise) and fallen > deepest / 2
