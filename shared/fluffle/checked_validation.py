"""What a task measures on its site's held-out data, checked and ready to be sent."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.fields import is_metric_name
from fluffle.sites import MAX_SITE_METRIC_NAME_LENGTH, MAX_SITE_METRICS, Pooling, SiteMetric
from fluffle.task import MeanOf, Validated

NUMBERS = "biuf"


def site_metrics(found: object) -> tuple[int, tuple[SiteMetric, ...]]:
    """Return the examples and the metrics of a `Validated`; an element of a vector is named "recall/0".

    Raises TaskError for anything else, and for metrics that cannot be sent.
    """
    if not isinstance(found, Validated):
        raise TaskError(f"validate must return a fluffle.task.Validated or None, not {type(found).__name__}")
    examples = found.examples
    if isinstance(examples, bool) or not isinstance(examples, int | np.integer) or examples < 1:
        raise TaskError(
            f"validate must return the number of examples as an int of at least 1, not {examples!r}"
        )
    if not isinstance(found.metrics, Mapping) or not found.metrics:
        raise TaskError(
            f"validate must return metrics as a dictionary with one or more, not {found.metrics!r:.40}"
        )
    metrics = tuple(
        each for name, value in found.metrics.items() for each in _metrics(name, value, int(examples))
    )
    for each in metrics:
        if not is_metric_name(each.name) or len(each.name) > MAX_SITE_METRIC_NAME_LENGTH:
            raise TaskError(
                f"validate: a metric's name has 1 to {MAX_SITE_METRIC_NAME_LENGTH} printable characters, "
                f"not {each.name!r:.80}"
            )
    if len(metrics) > MAX_SITE_METRICS:
        raise TaskError(
            f"validate returned {len(metrics)} metrics, and a site can send at most {MAX_SITE_METRICS}: "
            "average those by class (average='macro')"
        )
    return int(examples), metrics


def _metrics(name: object, value: object, examples: int) -> Iterator[SiteMetric]:
    if not isinstance(name, str):
        raise TaskError(f"validate: the name of a metric must be text, not {name!r:.80}")
    if isinstance(value, MeanOf):
        totals, counts = _numbers(name, value.total), _numbers(name, value.count)
        pooling: Pooling = "root_mean" if value.is_root else "mean"
    else:
        totals = _numbers(name, value) * float(examples)
        counts = np.full_like(totals, examples)
        pooling = "site_mean"
    if totals.shape != counts.shape:
        raise TaskError(
            f"validate: the metric {name!r} has a total of shape {totals.shape} and a count of shape "
            f"{counts.shape}: give both the same"
        )
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise TaskError(
            f"validate: the count of the metric {name!r} must be at least 0 and finite, not "
            f"{counts.reshape(-1).tolist()!r:.80}"
        )
    pairs = zip(totals.reshape(-1).tolist(), counts.reshape(-1).tolist(), strict=True)
    for at, (total, count) in enumerate(pairs):
        yield SiteMetric(f"{name}/{at}" if totals.ndim else name, pooling, total, count)


def _numbers(name: str, value: object) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(value)
    except Exception:  # whatever an object's __array__ raises
        numbers = np.array(None)
    if numbers.dtype.kind not in NUMBERS:
        raise TaskError(
            f"validate: the metric {name!r} must be a number, a vector of numbers or a MeanOf, not "
            f"{type(value).__name__}"
        )
    return numbers.astype(np.float64)
