"""Missing values: infinite ones count as missing, rows without a label are dropped, columns are filled."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.choices import Choice
from fluffle_worker.data.optional import import_for
from fluffle_worker.data.rows import Rows, leaves, names_of

Table = NDArray[Any]
# The nearest neighbours are sought among so many rows at most, which are drawn by the seed.
MOST_NEIGHBOURS = 5_000


def is_missing(table: Table) -> NDArray[np.bool_]:
    """Return where a table [rows, columns] has no finite number."""
    return ~np.isfinite(table) if table.dtype.kind == "f" else np.zeros(table.shape, bool)


def in_rows(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return in which rows a mask [rows, columns] is true anywhere."""
    return np.asarray(mask.any(axis=1))


def incomplete_rows(rows: Rows) -> NDArray[np.bool_]:
    """Return which rows have a missing or infinite value in any of their inputs."""
    found = np.zeros(len(rows), bool)
    for each in leaves(rows.x):
        if hasattr(each, "tocsr"):
            found[each.tocoo().row[is_missing(each.tocoo().data)]] = True
        else:
            found |= is_missing(each).reshape(len(rows), -1).any(axis=1)
    return found


def without_infinite(table: Table) -> Table:
    """Return a table in which infinite values are missing; the same one where there are none."""
    if table.dtype.kind != "f" or not np.isinf(table).any():
        return table
    return np.where(np.isinf(table), np.nan, table).astype(table.dtype)


def labelled(rows: Rows) -> NDArray[np.bool_]:
    """Return which rows have a label or a target, and a finite weight of at least 0 if there are weights."""
    found = np.ones(len(rows), bool)
    for each in leaves(rows.y):
        if each.dtype.kind == "f":
            found &= np.isfinite(each).reshape(len(rows), -1).all(axis=1)
    if rows.weights is not None:
        found &= np.isfinite(rows.weights) & (rows.weights >= 0)
    return found


def _usual_value(kind: str, column: NDArray[Any]) -> Any:
    """Return the value that fills a column: of those that are there; 0 where there are none."""
    there = column[~is_missing(column)]
    if not there.size:
        return 0
    match kind:
        case "mean":
            return np.mean(there, dtype=np.float64)
        case "most_frequent":
            different, counts = np.unique(there, return_counts=True)
            return different[counts.argmax()]
        case _:
            return np.median(there)


def fitted_imputer(
    rows: Rows, table: Table, choice: Choice, *, keep_empty: bool, rng: np.random.Generator
) -> Callable[[Table], Table]:
    """Return a function that fills the missing values of a table as those of `table` say, the rows' own.

    It is fitted when it is first called. Categories are filled with the most frequent one. With `keep_empty`,
    columns without any value are filled with 0; otherwise they raise TaskError.
    """
    numbers = [at for at in range(table.shape[1]) if at not in rows.categories]
    is_knn = choice.name == "knn"
    sample: Any = slice(None)
    if is_knn and len(table) > MOST_NEIGHBOURS:
        sample = np.sort(rng.choice(len(table), MOST_NEIGHBOURS, replace=False))

    @cache
    def usual() -> dict[int, Any]:
        """Return what columns are filled with in whichever row, by their numbers."""
        empty = np.flatnonzero(is_missing(table).all(axis=0))
        if empty.size and not keep_empty:
            raise TaskError(
                f"no value is there in any of the {len(table)} rows of {rows.function} in the columns "
                f"{names_of(rows, empty)}, so that nothing says how to fill them: leave them out at every "
                "site, or set indicator, which fills them with 0 and marks them"
            )
        # Column by column: masks and copies of a whole table would take several times its memory.
        kinds = {} if is_knn else dict.fromkeys(numbers, choice.name)
        kinds |= dict.fromkeys(rows.categories, "most_frequent")
        return {at: _usual_value(kind, table[:, at]) for at, kind in kinds.items()}

    @cache
    def neighbours() -> Any:
        impute = import_for(f"impute {choice}", "sklearn.impute", extra="worker")
        imputer = impute.KNNImputer(n_neighbors=int(choice.number), keep_empty_features=True)
        return imputer.fit(table[sample][:, numbers])

    def fill(given: Table) -> Table:
        filled = given.copy()
        for at, value in usual().items():
            column = filled[:, at]
            column[is_missing(column)] = value
        if is_knn and numbers:
            filled[:, numbers] = neighbours().transform(given[:, numbers])
        return filled

    return fill
