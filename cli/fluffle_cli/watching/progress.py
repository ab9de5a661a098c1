"""Whether a federation's model still improves, judged by the metric that says which version is best. Pure."""

import math
from dataclasses import dataclass
from typing import Literal

from fluffle_cli.history import EvaluatedVersion
from fluffle_cli.watching.trends import FEWEST, LONG, Trend, trend_of
from fluffle_cli.watching.view import FederationView
from fluffle_cli.words import count, number

State = Literal["unknown", "early", "improving", "flat", "worse", "not finite"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether the model still improves: a word for programs, and a sentence."""

    state: State
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
    metric, higher_is_better = yardstick.metric, yardstick.higher_is_better
    found = trend_of_metric(view, metric, higher_is_better=higher_is_better)
    if found is None or len(view.evaluations) < FEWEST:
        return _by_versions(view, metric, best.version, newest.version)
    trend, best = found
    last = view.evaluations[-1].version
    if trend.course == "worse":
        return Progress("worse", worse_in_words(metric, trend, best, higher_is_better=higher_is_better))
    if trend.course == "flat":
        has = "did not improve in the last" if view.is_over else "has not improved for"
        behind = count(last - best.version, "version")
        return Progress("flat", f"{metric} {has} {behind}, since version {best.version}.")
    return Progress("improving", _best_in_words(metric, best.version, last, is_over=view.is_over))


def trend_of_metric(
    view: FederationView, metric: str, *, higher_is_better: bool
) -> tuple[Trend, EvaluatedVersion] | None:
    """Return where a metric of the evaluations goes, and its best evaluation; None when none is known."""
    points = [each for each in view.evaluations if metric in each.metrics]
    trend = trend_of([each.metrics[metric] for each in points], higher_is_better=higher_is_better)
    return None if trend is None else (trend, points[trend.best])


def worse_in_words(metric: str, trend: Trend, best: EvaluatedVersion, *, higher_is_better: bool) -> str:
    """Say that a metric got worse, from when and by how much."""
    moved = "has fallen" if higher_is_better else "has risen"
    since = f"since version {best.version}"
    return f"{metric} {moved} from about {number(trend.was)} to {number(trend.now)} {since}."


def _by_versions(view: FederationView, metric: str, best: int, newest: int) -> Progress:
    """Judge by the record of the newest version alone."""
    if newest == 0:
        return Progress("early", "Only version 0 is evaluated, which nobody has trained.")
    said = _best_in_words(metric, best, newest, is_over=view.is_over)
    if newest <= best:
        return Progress("improving", said)
    return Progress("flat" if newest - best >= max(LONG, newest / 2) else "early", said)


def _best_in_words(metric: str, best: int, newest: int, *, is_over: bool) -> str:
    """Say which version is best, in words that do not depend on how many evaluations were seen."""
    if newest <= best:
        return f"The {'last' if is_over else 'newest'} evaluated version is the best one."
    return f"{metric} was best at version {best} of {newest}."
