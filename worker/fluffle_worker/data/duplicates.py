"""Rows that are there twice, and columns that never change. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle_worker.data.rows import Indices, Rows, leaves


def first_of_each(rows: Rows) -> NDArray[np.bool_]:
    """Return which rows are not equal to an earlier one, bit for bit, with the same label; [rows]."""
    table = np.ascontiguousarray(rows.table("duplicates"))
    labels = [np.ascontiguousarray(each).reshape(len(rows), -1) for each in leaves(rows.y)]
    seen: set[bytes] = set()
    is_first = np.zeros(len(rows), bool)
    for at in range(len(rows)):
        key = b"".join(each[at].tobytes() for each in (table, *labels))
        is_first[at] = key not in seen
        seen.add(key)
    return is_first


def constant_columns(table: NDArray[Any]) -> Indices:
    """Return the columns of a table [rows, columns] in which all values that are there are equal."""
    if not len(table):
        return np.zeros(0, np.int64)
    if table.dtype.kind != "f":
        return np.flatnonzero((table == table[0]).all(axis=0))
    low, high = np.fmin.reduce(table), np.fmax.reduce(table)
    return np.flatnonzero((low == high) | np.isnan(low))
