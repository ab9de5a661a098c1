"""When the federation has reached what it was started for, and which version is the best so far. Pure."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from fluffle.record import EarlyStopState, Evaluation, ModelVersion, not_finite
from fluffle.sites import SPREAD, WORST, is_of_sites, site_metric_in

# A metric may be called whatever prints, such as f1-score/0 or precision@k; only < and > end its name.
_TARGET = re.compile(
    r"\s*(?:(?P<metric>[^<>]*[^<>\s])\s*(?P<relation>>=|<=))?\s*(?P<bound>[-+]?[\d.]+(?:e-?\d+)?)\s*",
    re.IGNORECASE,
)
# By the end of a metric's name; of several metrics, the one that stands here first is preferred.
HIGHER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True,
    "auc": True,
    "f1": True,
    "f1_score": True,
    "fbeta_score": True,
    "precision": True,
    "recall": True,
    "iou": True,
    "r2": True,
    "r2_score": True,
    "loss": False,
    "perplexity": False,
    "rmse": False,
    "root_mean_squared_error": False,
    "mse": False,
    "mae": False,
    "error": False,
}
# Those that are from 0 to 1, but for what is rounded on the way.
SHARES = frozenset(("accuracy", "auc", "f1", "f1_score", "fbeta_score", "precision", "recall", "iou"))
SLACK = 1e-3
# Evaluations in a row by which the model is lost, after which nothing better is to come.
MOST_NOT_FINITE = 3


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that a metric of an evaluation must reach."""

    metric: str
    relation: str
    bound: float

    def is_met(self, metrics: Mapping[str, float]) -> bool:
        """Tell whether these metrics reach the bound; a metric that is missing, or is NaN, does not."""
        if self.metric not in metrics:
            return False
        value = metrics[self.metric]
        return value >= self.bound if self.relation == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.bound:g}"


def parse_target(text: str) -> Target:
    """Read "accuracy>=0.95", "mae<=45" or "0.95", which means accuracy; ValueError for anything else."""
    found, target = _TARGET.fullmatch(text), None
    if found:
        with suppress(ValueError):  # two dots in the number
            target = Target(found["metric"] or "accuracy", found["relation"] or ">=", float(found["bound"]))
    if target is None:
        raise ValueError(
            f"must read like 0.95, accuracy>=0.95 or mae<=45, not {text!r}: "
            "a metric of the task's evaluation, >= or <=, and a number"
        )
    _require_possible(target.metric)
    return target


def _require_possible(metric: str) -> None:
    """Raise ValueError for a name over all sites, such as worst.accuracy, that lacks a metric of the task."""
    of_site = site_metric_in(metric)
    if not of_site or is_of_sites(of_site):
        raise ValueError(
            f"must have a metric of the task behind sites., worst. or spread., such as worst.accuracy, not "
            f"{metric!r}"
        )


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The metric by which versions are compared, and its direction."""

    metric: str
    higher_is_better: bool

    @classmethod
    def of(cls, target: Target) -> Self:
        """Return the yardstick of a target."""
        return cls(target.metric, target.relation == ">=")

    def is_better(self, new: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Tell whether new metrics are better; what is missing or not finite is worse than anything."""
        values = [metrics.get(self.metric, math.nan) for metrics in (new, best)]
        if not math.isfinite(values[0]):
            return False
        gain = values[0] - values[1] if self.higher_is_better else values[1] - values[0]
        return not math.isfinite(values[1]) or gain > 0

    def __str__(self) -> str:
        return f"{self.metric}:{'max' if self.higher_is_better else 'min'}"


def parse_yardstick(text: str) -> Yardstick:
    """Read "rmse:min", "bleu:max", or the name alone of a metric whose direction is known.

    Raises ValueError, which says what is expected, for anything else.
    """
    metric, _, direction = text.strip().rpartition(":")
    if metric and direction in ("min", "max"):
        _require_possible(metric)
        return Yardstick(metric, direction == "max")
    known = known_direction(text.strip())
    if known is None:
        raise ValueError(
            f"must read like rmse:min or bleu:max, not {text!r}: a metric of the task's "
            "evaluation, and whether less or more of it is better; known without that are "
            f"{', '.join(HIGHER_IS_BETTER)}"
        )
    return Yardstick(text.strip(), known)


def known_direction(metric: str) -> bool | None:
    """Return whether more of a metric is better, None when its name does not say it."""
    if metric.startswith(SPREAD):
        return False
    return HIGHER_IS_BETTER.get(_known_end(metric))


def is_impossible(metric: str, value: float) -> bool:
    """Tell whether no model has such a value: an accuracy, an F1 and the like is a share, from 0 to 1."""
    return _known_end(metric) in SHARES and math.isfinite(value) and not -SLACK <= value <= 1 + SLACK


def _known_end(metric: str) -> str:
    # "f1_score/2" is the F1 of class 2, "val_loss" is a loss.
    name = site_metric_in(metric).partition("/")[0].lower()
    return next((end for end in HIGHER_IS_BETTER if name == end or name.endswith(f"_{end}")), "")


def usual_yardstick(metrics: Mapping[str, float]) -> Yardstick | None:
    """Return the first metric in the order of HIGHER_IS_BETTER; None when no direction is known."""
    for end, higher_is_better in HIGHER_IS_BETTER.items():
        for metric in metrics:
            if _known_end(metric) == end:
                return Yardstick(metric, higher_is_better)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What ends the federation: whichever comes first; None never does.

    `best` is by what versions are compared; without it, and without a target, by what is usual for the
    metrics of the evaluations. After `patience` evaluations in a row none of which gained more than
    `min_delta` by that, nothing better is expected. `max_seconds` counts from the first update on.
    """

    target: Target | None = None
    target_hold: int = 3
    patience: int | None = None
    min_delta: float = 0.0
    max_versions: int | None = None
    max_updates: int | None = None
    max_seconds: float | None = None
    best: Yardstick | None = None
    stop_on_nan: bool = True

    def reached(
        self, *, version: int, updates: int, training_s: float, target_held: int, not_finite_held: int = 0
    ) -> str:
        """Return why the federation is over in words, or an empty string while it is not."""
        if self.target and target_held >= self.target_hold:
            times = "an evaluation" if target_held == 1 else f"{target_held} evaluations"
            return f"{self.target} held for {times}"
        if self.stop_on_nan and not_finite_held >= MOST_NOT_FINITE:
            return (
                f"{not_finite_held} evaluations in a row were not finite: the learning rate may be too high, "
                "a site's data may hold NaN, or the loss may divide by zero or take its logarithm"
            )
        if self.max_versions is not None and version >= self.max_versions:
            return f"{version} versions were made"
        if self.max_updates is not None and updates >= self.max_updates:
            return f"{updates} updates were applied"
        if self.max_seconds is not None and training_s >= self.max_seconds:
            return f"{training_s:.0f} seconds have passed"
        return ""

    @property
    def yardsticks(self) -> tuple[Yardstick, ...]:
        """What was said of which metrics count: that of the best version, and that of the target."""
        of_target = Yardstick.of(self.target) if self.target else None
        return tuple(each for each in (self.best, of_target) if each)

    @property
    def by_sites(self) -> bool | None:
        """Whether these are measured at the sites; None when nothing was said."""
        return any(is_of_sites(each.metric) for each in self.yardsticks) if self.yardsticks else None

    def after_evaluation(self, state: EarlyStopState, metrics: Mapping[str, float]) -> EarlyStopState:
        """Return how long nothing was better, after one more evaluation.

        A gain is counted from the last value that gained as much, as in Keras's EarlyStopping. A value that
        is missing or not finite gains nothing.
        """
        yardstick = self.yardstick(metrics)
        if self.patience is None or yardstick is None:
            return EarlyStopState()
        value = metrics.get(yardstick.metric, math.nan)
        if math.isfinite(value):
            if state.reference is None:
                return EarlyStopState(value)
            change = value - state.reference
            if (change if yardstick.higher_is_better else -change) > self.min_delta:
                return EarlyStopState(value)
        return EarlyStopState(state.reference, state.misses + 1)

    def out_of_patience(self, draft: ModelVersion) -> str:
        """Return why nothing better is to be expected, or an empty string."""
        if self.patience is None or draft.early_stop.misses < self.patience:
            return ""
        metric = draft.best_by.rpartition(":")[0]
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{metric or 'nothing'} did not improve{by} in {draft.early_stop.misses} evaluations"

    def held(self, before: int, metrics: Mapping[str, float]) -> int:
        """Return for how many evaluations in a row the target has held, after one more."""
        return before + 1 if self.target and self.target.is_met(metrics) else 0

    def yardstick(self, metrics: Mapping[str, float]) -> Yardstick | None:
        """Return by what evaluations with these metrics are compared; None when nothing says it."""
        if self.best:
            return self.best
        return Yardstick.of(self.target) if self.target else usual_yardstick(metrics)

    def lost(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the metrics that are not finite, where they say that the model is lost; else none.

        Those are a loss, and what the target or the best version depends on, measured by an evaluator or in
        the mean of all sites; or all metrics. The others, such as the recall of a class without an example,
        have no value in a sound model too.
        """
        measured = {name: each for name, each in metrics.items() if not name.startswith((WORST, SPREAD))}
        found, usual = not_finite(measured), self.yardstick(metrics)
        yardsticks = (*self.yardsticks, *([usual] if usual else []))
        of_goal = {site_metric_in(each.metric) for each in yardsticks}
        decisive = [each for each in found if site_metric_in(each) in of_goal or _known_end(each) == "loss"]
        return decisive if len(found) < len(measured) else found

    def better(self, best: Evaluation | None, new: Evaluation) -> Evaluation | None:
        """Return the better of two evaluations, or the earlier; None when nothing says what is best."""
        yardstick = self.yardstick(new.metrics)
        if yardstick is None or not yardstick.is_better(new.metrics, best.metrics if best else {}):
            return best
        return new
