"""Data steps on a data set that is read minibatch by minibatch; those that need all rows are refused."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle_worker.data.augment import Spread
from fluffle_worker.data.choices import Choice
from fluffle_worker.data.missing import is_missing
from fluffle_worker.data.rows import Labels, labels_of, leaves
from fluffle_worker.data.settings import CLIPPING, LOSSES, WEIGHTS, DataSteps
from fluffle_worker.data.weights import LossRemedy, class_weights, loss_remedy

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedStream:
    """What one pass over a stream found: weights [classes], the change of the loss, and the spread.

    `axes` is how many axes the inputs have, 0 where they are no single array.
    """

    axes: int
    weights: NDArray[np.float64] | None
    remedy: LossRemedy | None
    spread: Spread | None


def require_streamable(steps: DataSteps) -> None:
    """Raise TaskError, which names the steps, when some need all rows at once."""
    balance = steps.choice("balance")
    needs_all = {
        f"impute {steps.impute}": "impute" in steps.model_fields_set and steps.impute != "refuse",
        "indicator": steps.indicator,
        f"outliers {steps.outliers}": steps.outliers != "keep",
        "duplicates drop": steps.duplicates == "drop",
        f"labels {steps.labels}": steps.labels != "keep",
        f"balance {balance}": balance.name not in {"none", *WEIGHTS, *LOSSES},
    }
    _refuse(needs_all, "train_data", "return arrays, or leave them out (weights and losses work on both)")


def require_same_columns(minibatches: Iterable[tuple[object, ...]], steps: DataSteps) -> None:
    """Raise TaskError for held-out minibatches that would need a step that changes columns."""
    needs_all = {
        "indicator": steps.indicator,
        f"outliers {steps.outliers}": steps.choice("outliers").name in CLIPPING,
    }
    _refuse(needs_all, "eval_data", "return arrays, or leave them out")
    _require_complete("eval_data", sum(_missing(x) for x, *_ in minibatches))


def _refuse(steps: Mapping[str, bool], function: str, remedy: str) -> None:
    if refused := [name for name, is_asked in steps.items() if is_asked]:
        raise TaskError(
            f"the data steps {', '.join(refused)} need all rows at once, and {function} returned a data set "
            f"that is read minibatch by minibatch: {remedy}"
        )


def _missing(x: object) -> int:
    """Return how many values of a minibatch's inputs are missing or infinite."""
    arrays = [np.asarray(each) for each in leaves(x) if hasattr(each, "shape")]
    return sum(int(is_missing(each).sum()) for each in arrays)


def _require_complete(function: str, missing: int) -> None:
    if missing:
        raise TaskError(
            f"the data set that {function} returned holds {missing} missing or infinite values, which the "
            "data steps fill in arrays only: fill them in its map(), or return arrays"
        )


def look_through(
    minibatches: Iterable[tuple[object, ...]], steps: DataSteps, prior: NDArray[np.float64] | None = None
) -> PreparedStream:
    """Pass once over (x, y) or (x, y, sample_weight), and return what training needs to know.

    Raises TaskError for missing and infinite values, since nothing can be fitted to fill them.
    """
    balance = steps.choice("balance")
    counts, moments, missing, axes = np.zeros(0, np.int64), _Moments(), 0, 0
    for x, *rest in minibatches:
        array = np.asarray(x) if hasattr(x, "shape") else None
        axes = 0 if array is None else array.ndim
        missing += _missing(x)
        if array is not None and array.dtype.kind in "biuf":
            moments.add(array)
        if balance.name != "none":
            counts = _sum(counts, _labels(rest, balance).counts)
    _require_complete("train_data", missing)
    remedy = loss_remedy(counts, balance, prior) if balance.name in LOSSES else None
    weights = class_weights(counts, balance) if balance.name in WEIGHTS else None
    if balance.name != "none":
        log.info(
            "data step",
            step=f"balance {balance}",
            rows_before=int(counts.sum()),
            rows_after=int(counts.sum()),
        )
    return PreparedStream(axes, weights, remedy, moments.spread())


def with_weights(parts: tuple[object, ...], of_class: NDArray[np.float64]) -> tuple[object, ...]:
    """Return a minibatch in which each row's weight is multiplied by that of its class."""
    labels = labels_of(np.asarray(parts[1]), any_whole=True)
    of_rows = of_class[labels.of_rows] if labels else np.ones(0)
    own = np.asarray(parts[2], np.float64).reshape(-1) if len(parts) > 2 else 1.0
    return parts[0], parts[1], (of_rows * own).astype(np.float32)


class _Moments:
    """Count, sum and sum of squares of each last axis, and the extremes."""

    def __init__(self) -> None:
        self.rows, self.sums, self.squares = 0, np.zeros(()), np.zeros(())
        self.lowest, self.highest = np.inf, -np.inf
        self.is_whole = True

    def add(self, x: NDArray[np.generic]) -> None:
        flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        self.rows += len(flat)
        self.is_whole &= x.dtype.kind in "iu"
        self.sums = self.sums + flat.sum(axis=0)
        self.squares = self.squares + (flat**2).sum(axis=0)
        if flat.size:
            self.lowest, self.highest = min(self.lowest, flat.min()), max(self.highest, flat.max())

    def spread(self) -> Spread | None:
        if not self.rows:
            return None
        mean = self.sums / self.rows
        variance = np.maximum(self.squares / self.rows - mean**2, 0)
        return Spread(mean, np.sqrt(variance), float(self.lowest), float(self.highest), self.is_whole)


def _labels(rest: list[object], balance: Choice) -> Labels:
    labels = labels_of(np.asarray(rest[0]), any_whole=True) if rest else None
    if labels is None:
        raise TaskError(
            f"the data step balance {balance} needs a class for each row (whole numbers from 0, or one-hot), "
            "and y of the data set holds others: leave it out for a regression"
        )
    return labels


def _sum(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    size = max(one.size, other.size)
    return np.pad(one, (0, size - one.size)) + np.pad(other, (0, size - other.size))
