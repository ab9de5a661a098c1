"""Outliers: bounds for each column, fitted on the training rows, and rows that are unusual as a whole."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fluffle_worker.data.choices import Choice
from fluffle_worker.data.optional import import_for

Table = NDArray[Any]
# Of a normal distribution, the median absolute deviation times this is the standard deviation.
MAD_TO_SD = 1.4826


class Bounds(NamedTuple):
    """The smallest and the largest value of each column [columns] that is not clipped."""

    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]

    def is_outside(self, table: Table) -> NDArray[np.bool_]:
        """Return where the values of a table lie outside; missing ones do not."""
        return np.asarray((table < self.lowest) | (table > self.highest))

    def outside(self, table: Table) -> int:
        """Return how many values lie outside."""
        return int(self.is_outside(table).sum())

    def clip(self, table: Table) -> Table:
        """Return a table whose values lie within; missing ones stay missing, and the dtype is kept."""
        if table.dtype.kind == "b":
            return table
        if table.dtype.kind in "iu":
            low, high = _whole(np.ceil(self.lowest), table.dtype), _whole(np.floor(self.highest), table.dtype)
            return np.clip(table, low, high)
        return np.clip(table, self.lowest.astype(table.dtype), self.highest.astype(table.dtype))


def _whole(bounds: NDArray[np.float64], dtype: np.dtype[Any]) -> Table:
    """Return bounds [columns] in a dtype of whole numbers; its own limits in place of those beyond them."""
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    # As a float64, the largest int64 is the number above it, and the dtype has no such number.
    return np.array([min(int(each), most) for each in bounds.clip(least, most).tolist()], dtype)


def fit_bounds(table: Table, choice: Choice, categories: Sequence[int] = ()) -> Bounds:
    """Return the bounds of `quantiles:SHARE` or `mad:K`; categories and columns without values have none.

    Where more than half of a column's values are equal, their median deviation is 0: `mad` takes that of the
    others, or else everything but one value would be clipped.
    """
    with warnings.catch_warnings():
        # What numpy says of a column without any value.
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        if choice.name == "quantiles":
            values = table.astype(np.float64, copy=False)
            low, high = np.nanquantile(values, [choice.number, 1 - choice.number], axis=0)
        else:
            middle = np.nanmedian(table, axis=0)
            apart = np.abs(table - middle)
            deviation = np.nanmedian(apart, axis=0)
            of_others = np.nanmedian(np.where(apart > 0, apart, np.nan), axis=0)
            width = choice.number * MAD_TO_SD * np.where(deviation > 0, deviation, of_others)
            low, high = middle - width, middle + width
    low[list(categories)], high[list(categories)] = -np.inf, np.inf
    return Bounds(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high))


def usual_rows(table: Table, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows of a table without missing values are not among the `share` of the most unusual.

    Where the share is less than one row, all are kept. Source: Liu, Ting and Zhou, "Isolation Forest" (2008).
    """
    ensemble = import_for(f"outliers forest:{share:g}", "sklearn.ensemble", extra="worker")
    how_usual = ensemble.IsolationForest(random_state=seed).fit(table).score_samples(table)
    kept = np.ones(len(table), bool)
    unusual = share * len(table)
    kept[np.argsort(how_usual, kind="stable")[: math.ceil(unusual) if unusual >= 1 else 0]] = False
    return kept
