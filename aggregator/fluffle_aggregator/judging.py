"""What an evaluation changes: the best version, how long the target has held, and when to stop. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fluffle.record import EarlyStopState, Evaluation, ModelVersion
from fluffle.sites import MEAN, SPREAD, WORST, OverSites, is_of_sites, site_metric_in
from fluffle_aggregator.goal import Goal, known_direction
from fluffle_aggregator.schedules import Schedule


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether an evaluation is better than the best one so far, and how much patience is left."""

    is_better: bool
    early_stop: EarlyStopState


def compare_as_whole(draft: ModelVersion, evaluation: Evaluation, goal: Goal) -> Comparison:
    """Compare an evaluation with the best one, both of the same data, or of what is taken for that."""
    return Comparison(
        is_better=goal.better(draft.best, evaluation) is not draft.best,
        early_stop=goal.after_evaluation(draft.early_stop, evaluation.metrics),
    )


def sites_decide(goal: Goal, draft: ModelVersion) -> bool:
    """Tell whether the evaluations by the sites decide, and not those of an evaluator.

    The metric of the target or of the best version says it; without both, an evaluator decides if there is
    one.
    """
    decided = goal.by_sites
    return draft.evaluation is None if decided is None else decided


def judged(
    draft: ModelVersion,
    evaluation: Evaluation,
    goal: Goal,
    schedule: Schedule,
    comparison: Comparison,
    *,
    is_missed: bool = False,
) -> ModelVersion:
    """Return the draft of the next record after an evaluation that decides.

    With `is_missed` the target is missed, whatever the metrics say: a site cannot say that it is reached.
    """
    is_better = comparison.is_better
    best = evaluation if is_better else draft.best
    return replace(
        draft,
        best=best,
        best_by=str(goal.yardstick(evaluation.metrics) or "") if best else "",
        plateau=schedule.after_evaluation(draft.plateau, is_better=is_better),
        early_stop=comparison.early_stop,
        target_held=0 if is_missed else goal.held(draft.target_held, evaluation.metrics),
        not_finite_held=draft.not_finite_held + 1 if goal.lost(evaluation.metrics) else 0,
    )


def metrics_over_sites(found: Mapping[str, OverSites], goal: Goal) -> dict[str, float]:
    """Return what an evaluation by all sites says: mean, worst and spread of each metric.

    The worst is left out where nothing says which end is worse. What no site can tell, such as the recall of
    a class that none has, is left out altogether.
    """
    metrics: dict[str, float] = {}
    for name, each in found.items():
        if not each.sites and not each.not_finite:
            continue
        metrics[f"{MEAN}{name}"] = each.mean
        higher_is_better = _direction(name, goal)
        if higher_is_better is not None:
            metrics[f"{WORST}{name}"] = worst_of(each, higher_is_better=higher_is_better)
        metrics[f"{SPREAD}{name}"] = each.spread
    return metrics


def worst_of(found: OverSites, *, higher_is_better: bool) -> float:
    """Return the worst value of a metric; NaN where it is not finite at a site."""
    if found.not_finite:
        return math.nan
    return found.lowest if higher_is_better else found.highest


def _direction(metric: str, goal: Goal) -> bool | None:
    """Return whether more of a metric is better, as the goal says, or else its name."""
    for yardstick in goal.yardsticks:
        is_other = yardstick.metric.startswith(SPREAD) or not is_of_sites(yardstick.metric)
        if not is_other and site_metric_in(yardstick.metric) == metric:
            return yardstick.higher_is_better
    return known_direction(metric)
