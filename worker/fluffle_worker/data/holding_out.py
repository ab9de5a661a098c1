"""Which rows of a site are held out to evaluate versions on, before any data step is fitted. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.rows import MOST_CLASSES, labels_of


def held_out_rows(y: Any, rows: int, share: float, *, split_seed: int, site: int) -> NDArray[np.bool_]:
    """Return which of so many rows are held out: a share of each class, or of all where there are none.

    `y` are the labels or targets of all rows, None where there are none. The seed of the split and the
    number of the site choose the rows. Raises TaskError when no row would be held out, or none would be left.
    """
    rng = np.random.default_rng([split_seed, site])
    strata = _strata(y, rows)
    shuffled = rng.permutation(rows)
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    # Walking along the rows in the order of their classes, each 1 / share of a row holds out one more.
    passed = np.floor(np.arange(rows + 1) * share + rng.random())
    held = np.zeros(rows, bool)
    held[order] = np.diff(passed) > 0
    if held.all() or not held.any():
        raise TaskError(
            f"local_validation {share:g} of {rows} rows holds out {int(held.sum())} and leaves "
            f"{int((~held).sum())} to train on: both need at least 1; change it, or leave it out"
        )
    return held


def _strata(y: Any, rows: int) -> NDArray[np.int64]:
    """Return the class of each row, 0 for all where the targets are no classes."""
    nothing = np.zeros(rows, np.int64)
    if not isinstance(y, np.ndarray) or y.dtype.kind not in "biufUS" or len(y) != rows or not rows:
        return nothing
    flat = y.reshape(-1)
    is_named = flat.size == rows and (
        flat.dtype.kind in "US" or bool(((flat < 0) | (flat >= MOST_CLASSES)).any())
    )
    if not is_named:
        labels = labels_of(y)
        return nothing if labels is None else labels.of_rows
    # Labels such as -1 and 1, long numbers, or text. Numbers that hardly repeat are targets.
    different, of_rows = np.unique(flat, return_inverse=True)
    return nothing if 2 * different.size > rows else of_rows.reshape(-1).astype(np.int64)
