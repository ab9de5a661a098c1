"""Missing values: infinite ones count as missing, rows without a label are dropped, columns are filled."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.choices import Choice
from fluffle_worker.data.optional import import_for
from fluffle_worker.data.rows import Rows, names_of

Table = NDArray[Any]
# The nearest neighbours are sought among so many rows at most, which are drawn by the seed.
MOST_NEIGHBOURS = 5_000
STRATEGIES = {"mean", "median", "most_frequent"}


def is_missing(table: Table) -> NDArray[np.bool_]:
    """Return where a table [rows, columns] has no finite number."""
    return ~np.isfinite(table) if table.dtype.kind == "f" else np.zeros(table.shape, bool)


def in_rows(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return in which rows a mask [rows, columns] is true anywhere."""
    return np.asarray(mask.any(axis=1))


def without_infinite(table: Table) -> Table:
    """Return a table in which infinite values are missing; the same one where there are none."""
    if table.dtype.kind != "f" or not np.isinf(table).any():
        return table
    return np.where(np.isinf(table), np.nan, table).astype(table.dtype)


def labelled(rows: Rows) -> NDArray[np.bool_]:
    """Return which rows have a label or a target, and a finite weight of at least 0 if there are weights."""
    found = np.ones(len(rows), bool)
    if rows.y is not None and rows.y.dtype.kind == "f":
        found &= np.isfinite(rows.y).reshape(len(rows), -1).all(axis=1)
    if rows.weights is not None:
        found &= np.isfinite(rows.weights) & (rows.weights >= 0)
    return found


def fit_imputer(
    rows: Rows, table: Table, choice: Choice, *, keep_empty: bool, rng: np.random.Generator
) -> Callable[[Table], Table]:
    """Return a function that fills the missing values of a table as those of the training rows say.

    `keep_empty` fills columns without any value with 0; otherwise they raise TaskError.
    """
    empty = np.flatnonzero(is_missing(table).all(axis=0))
    if empty.size and not keep_empty:
        raise TaskError(
            f"no value is there in any of the {len(table)} training rows in the columns "
            f"{names_of(rows, empty)}, so that nothing says how to fill them: leave them out in train_data "
            "at every site, or set indicator, which fills them with 0 and marks them"
        )
    if choice.name not in STRATEGIES | {"knn"}:
        return lambda given: given
    impute = import_for(f"impute {choice}", "sklearn.impute", extra="worker")
    if choice.name == "knn":
        fitted = impute.KNNImputer(n_neighbors=int(choice.number), keep_empty_features=True)
        many = len(table) > MOST_NEIGHBOURS
        sample = np.sort(rng.choice(len(table), MOST_NEIGHBOURS, replace=False)) if many else slice(None)
        fitted.fit(table[sample])
    else:
        fitted = impute.SimpleImputer(strategy=choice.name, keep_empty_features=True).fit(table)
    return lambda given: np.asarray(fitted.transform(given)).astype(given.dtype)
