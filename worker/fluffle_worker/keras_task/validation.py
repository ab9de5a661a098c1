"""The metrics of an evaluation in a form that can be summed over sites, where Keras's own state has it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fluffle.task import MeanOf, Validated
from fluffle_worker.keras_task.backend import KerasModel, import_keras
from fluffle_worker.keras_task.steps import ACCURACIES, Metrics

# Keras adds up in float32.
RELATIVE_TOLERANCE = 1e-4


def validated(model: KerasModel, metrics: Metrics, examples: int) -> Validated:
    """Return the metrics that were just evaluated, each as a mean if the model's own metric objects say so.

    Means, and whatever Keras computes as one (accuracies, errors, losses), precision and recall at one
    threshold are summed up. AUC, F1 and metrics of a model's own test step are not.
    """
    known = [(metric.name, mean) for metric in _leaves(model) if (mean := _mean_of(metric)) is not None]
    return Validated(
        examples,
        {
            name: next(
                (mean for of, mean in known if _is_named(name, of) and _is_its_value(mean, value)), value
            )
            for name, value in metrics.items()
        },
    )


def _leaves(model: KerasModel) -> Iterator[Any]:
    for metric in model.metrics:
        yield from getattr(metric, "metrics", None) or [metric]


def _mean_of(metric: Any) -> MeanOf | None:
    """Return a metric's state as a sum and a count; None for one that is no quotient of two sums."""
    metrics = import_keras().metrics
    if isinstance(metric, metrics.Mean):
        is_root = isinstance(metric, metrics.RootMeanSquaredError)
        return MeanOf(_array(metric.total), _array(metric.count), is_root)
    if isinstance(metric, metrics.Precision | metrics.Recall) and metric.true_positives.shape[0] == 1:
        is_recall = isinstance(metric, metrics.Recall)
        right = _array(metric.true_positives)
        wrong = _array(metric.false_negatives if is_recall else metric.false_positives)
        return MeanOf(right[0], right[0] + wrong[0])
    return None


def _array(variable: Any) -> Any:
    return np.asarray(import_keras().ops.convert_to_numpy(variable), np.float64)


def _is_named(name: str, metric: str) -> bool:
    """Tell whether a result has the name of a metric object, maybe after that of an output.

    Keras numbers a second metric of one name, and the only accuracy is called "accuracy" here.
    """
    is_numbered = name.rpartition("_")[2].isdecimal() and name.rpartition("_")[0].endswith(metric)
    return name.endswith(metric) or is_numbered or (name == "accuracy" and metric in ACCURACIES)


def _is_its_value(mean: MeanOf, value: Any) -> bool:
    """Tell whether the state gives the value that Keras gave: a metric may compute more than a quotient."""
    total, count = np.asarray(mean.total), np.asarray(mean.count)
    if total.shape != np.shape(value):
        return False
    # As in Keras, nothing divided by nothing is 0.
    found = np.divide(total, count, out=np.zeros_like(total), where=count != 0)
    found = np.sqrt(found) if mean.is_root else found
    return bool(np.allclose(found, value, rtol=RELATIVE_TOLERANCE, atol=1e-7, equal_nan=True))
