"""What the page, `fluffle status` and the report judge a federation by, and whether its model improves. Pure.

All three make a `Standing` of what they know, and show what `progress_of` here and `findings_of` in
findings.py say of it, so that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fluffle_aggregator.goal import Yardstick, parse_yardstick
from fluffle_cli.history import EvaluatedVersion, History
from fluffle_cli.trends import FEWEST, LONG, Trend, trend_of
from fluffle_cli.words import count, number
from fluffle_cli.workers import WorkerFacts

# Whichever an evaluation has first is shown, unless something says what is best.
USUAL_METRICS = ("accuracy", "loss")

State = Literal["unknown", "early", "improving", "flat", "worse", "not finite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of a federation at one moment.

    `best_by` is empty where nothing says what is best; `best` is None then. `history` may know only a part of
    the past. `silent_s` says how long each worker that ought to be at work was not heard of, and
    `rivals` which other process wanted a worker's name a short while ago. With `takes_rounds` each version
    waits for all workers. Where nobody can tell whether an aggregator is at work, `is_led` is true.
    """

    is_over: bool
    version: int
    updates: int
    workers: Mapping[str, WorkerFacts]
    evaluation: EvaluatedVersion | None
    best: EvaluatedVersion | None
    best_by: str
    history: History
    training_s: float = 0.0
    silent_s: Mapping[str, float] = field(default_factory=dict)
    rivals: Mapping[str, str] = field(default_factory=dict)
    takes_rounds: bool = False
    is_led: bool = True
    updates_waiting: int = 0

    @property
    def yardstick(self) -> Yardstick | None:
        """By what versions are compared; None when nothing is best."""
        return parse_yardstick(self.best_by) if self.best_by else None

    @property
    def metric(self) -> str | None:
        """The metric that stands for the evaluations; None when there is none."""
        if self.yardstick:
            return self.yardstick.metric
        return metric_to_show(self.evaluation.metrics) if self.evaluation else None


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether the model still improves: a word for programs, and a sentence."""

    state: State
    says: str


def metric_to_show(metrics: Mapping[str, float], wanted: str | None = None) -> str | None:
    """Choose the metric that stands for an evaluation; None when it has none."""
    names = [name for name in (wanted, *USUAL_METRICS) if name in metrics]
    return names[0] if names else next(iter(metrics), None)


def progress_of(standing: Standing) -> Progress:
    """Judge whether the model still improves, by the metric that says which version is best."""
    newest, best, yardstick = standing.evaluation, standing.best, standing.yardstick
    if newest is None:
        said = "No version was evaluated." if standing.is_over else "No version is evaluated yet."
        return Progress("unknown", said)
    value = newest.metrics.get(standing.metric or "", 0.0)
    if not math.isfinite(value):
        return Progress("not finite", f"{standing.metric} of version {newest.version} is {number(value)}.")
    if yardstick is None or best is None:
        names = ", ".join(newest.metrics) or "there is no metric"
        return Progress("unknown", f"Nothing says whether more or less is better ({names}).")
    return _by_history(standing, yardstick) or _by_versions(standing, yardstick.metric, best, newest)


def trend_of_metric(
    standing: Standing, metric: str, *, higher_is_better: bool
) -> tuple[Trend, EvaluatedVersion] | None:
    """Return where a metric of the evaluations goes, and its best evaluation; None when none is known."""
    points = [each for each in standing.history.evaluations if metric in each.metrics]
    trend = trend_of([each.metrics[metric] for each in points], higher_is_better=higher_is_better)
    return None if trend is None else (trend, points[trend.best])


def worse_in_words(metric: str, trend: Trend, best: EvaluatedVersion, *, higher_is_better: bool) -> str:
    """Say that a metric got worse, from when and by how much."""
    moved = "has fallen" if higher_is_better else "has risen"
    since = f"since version {best.version}"
    return f"{metric} {moved} from about {number(trend.was)} to {number(trend.now)} {since}."


def _by_history(standing: Standing, yardstick: Yardstick) -> Progress | None:
    """Judge by the evaluations that were seen; None when they are too few."""
    found = trend_of_metric(standing, yardstick.metric, higher_is_better=yardstick.higher_is_better)
    if found is None or len(standing.history.evaluations) < FEWEST:
        return None
    trend, best = found
    metric, over = yardstick.metric, standing.is_over
    if trend.course == "worse":
        said = worse_in_words(metric, trend, best, higher_is_better=yardstick.higher_is_better)
        return Progress("worse", said)
    newest = standing.history.evaluations[-1]
    if trend.course == "flat":
        has = "did not improve in the last" if over else "has not improved for"
        behind = count(newest.version - best.version, "version")
        return Progress("flat", f"{metric} {has} {behind}, since version {best.version}.")
    return Progress("improving", _best_in_words(metric, best.version, newest.version, is_over=over))


def _by_versions(
    standing: Standing, metric: str, best: EvaluatedVersion, newest: EvaluatedVersion
) -> Progress:
    """Judge by the record of the newest version alone."""
    if newest.version == 0:
        return Progress("early", "Only version 0 is evaluated, which nobody has trained.")
    said = _best_in_words(metric, best.version, newest.version, is_over=standing.is_over)
    behind = newest.version - best.version
    if behind <= 0:
        return Progress("improving", said)
    return Progress("flat" if behind >= max(LONG, newest.version / 2) else "early", said)


def _best_in_words(metric: str, best: int, newest: int, *, is_over: bool) -> str:
    """Say which version is best, in words that do not depend on how many evaluations were seen."""
    if newest <= best:
        which = "last" if is_over else "newest"
        return f"The {which} evaluated version is the best one."
    return f"{metric} was best at version {best} of {newest}."
