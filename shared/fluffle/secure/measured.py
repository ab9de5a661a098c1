"""What sites measure, as values that are masked and added up with their updates. Pure.

Each update carries the newest evaluation of its site. Weighted like the update, totals and counts are added
up as in the clear, so that the sum of a buffer has the mean over the data of its sites, and nobody learns
the value of one of them. An evaluation has two values: 1, and the version that was evaluated. A metric has
two: a part of its total, so that large ones fit, and its count.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fluffle.record import Evaluation
from fluffle.secure.limbs import LARGEST
from fluffle.secure.plan import MEASURED_VALUES, SecurePlan
from fluffle.sites import MEAN, SITES, SiteEvaluation, SiteMetric

Values = NDArray[np.float64]

# Totals of up to 2**46 fit, to 2**-14.
TOTAL_UNIT: Final = 2.0**10
# A metric that is not finite at a site has this count. It is so far below 0 that no counts of other sites,
# which are clipped to MOST_COUNT, make up for it, even with the least weight.
NOT_FINITE: Final = -LARGEST
MOST_COUNT: Final = 2.0**20


def measured_values(found: SiteEvaluation | None, plan: SecurePlan) -> Values:
    """Return what an update carries of its site's newest evaluation, float64 [plan.measured_size].

    All are 0 at a site that holds out nothing, and those of a metric where its total is too large to travel.
    """
    values = np.zeros(plan.measured_size)
    if found is None or not plan.metrics:
        return values
    values[0], values[1] = 1, found.version
    examples, known = min(float(found.examples), MOST_COUNT), {each.name: each for each in found.metrics}
    for place, name in enumerate(plan.metrics, 1):
        if metric := known.get(name):
            start = MEASURED_VALUES * place
            values[start : start + MEASURED_VALUES] = _total_and_count(metric, examples)
    return values


def too_large(found: SiteEvaluation, plan: SecurePlan) -> list[str]:
    """Return the metrics of an evaluation that are too large to travel."""
    examples = min(float(found.examples), MOST_COUNT)
    named = [each for each in found.metrics if each.name in plan.metrics and each.count]
    return [each.name for each in named if not any(_total_and_count(each, examples))]


def _total_and_count(metric: SiteMetric, examples: float) -> tuple[float, float]:
    """Return what can be added up of a metric: of one that is no mean, its value times the examples."""
    if not metric.count:
        return 0.0, 0.0
    if not math.isfinite(metric.value):
        return 0.0, NOT_FINITE
    if metric.pooling == "mean":
        shrunk = min(1.0, MOST_COUNT / metric.count)
        total, count = metric.total * shrunk, metric.count * shrunk
    else:
        total, count = metric.value * examples, examples
    total /= TOTAL_UNIT
    return (total, count) if abs(total) < LARGEST else (0.0, 0.0)


def evaluation_of(values: Values, plan: SecurePlan, *, federation: str) -> Evaluation | None:
    """Return the evaluation by the sites of a sum, from the weighted sums of their values.

    Its version is the mean of those that they have evaluated. A metric that is not finite at a site is NaN.
    None if no site has measured anything.
    """
    if not plan.metrics or values[0] <= 0:
        return None
    metrics: dict[str, float] = {}
    for place, name in enumerate(plan.metrics, 1):
        total, count = values[MEASURED_VALUES * place : MEASURED_VALUES * (place + 1)]
        if count:
            metrics[f"{MEAN}{name}"] = float(TOTAL_UNIT * total / count) if count > 0 else math.nan
    version = max(0, round(values[1] / values[0]))
    return Evaluation(federation, SITES, version, metrics) if metrics else None
