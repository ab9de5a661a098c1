"""Statistics to bytes and back, in the payload of a message; docs/protocol.md has the table. Pure.

Nothing that the bytes say is believed: what could not have come from data is a WireError that says why.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import WireError
from fluffle.survey.columns import FRACTION_BITS, MAX_COLUMNS, ColumnSums
from fluffle.survey.grid import HIGHEST_EXPONENT, LEAF_BITS, LEAVES, LOWEST_EXPONENT
from fluffle.survey.shape import MAX_CLASSES, MAX_COLUMN_NAME
from fluffle.survey.statistics import DataStatistics

# Values of a column: those of one site, and those of as many sites as may answer.
MOST_OF_A_SITE: Final = 2**48
_MOST_VALUES: Final = 2**62
# Up to so many values, all sums over leaves fit into an int64.
_FEW_VALUES: Final = 2**40
# Rows, columns, bytes of their names, classes (-1: there are none).
_HEAD: Final = Struct("<QHIi")
_FACTS: Final = np.dtype(
    [
        *(("missing", "<u8"), ("first", "<i8"), ("exponent", "<i2"), ("unit", "<i2"), ("leaves", "<u2")),
        *(("total_bytes", "<u2"), ("squares_bytes", "<u2")),
    ]
)


def pack(statistics: DataStatistics) -> bytes:
    """Return statistics as bytes: of one site, or merged."""
    columns = statistics.columns
    there = [np.flatnonzero(column.counts) for column in columns]
    numbers = [[_signed(each) for each in (column.total, column.squares)] for column in columns]
    facts = np.array(
        [
            (column.missing, column.first, column.exponent, column.unit, at.size, *map(len, sums))
            for column, at, sums in zip(columns, there, numbers, strict=True)
        ],
        _FACTS,
    )
    counts = [column.counts[at] for column, at in zip(columns, there, strict=True)]
    names, classes = "\n".join(statistics.names).encode(), statistics.classes
    many = -1 if classes is None else len(classes)
    return b"".join(
        [
            _HEAD.pack(statistics.rows, len(columns), len(names), many),
            names,
            facts.tobytes(),
            np.concatenate(there).astype("<u2").tobytes(),
            np.concatenate(counts).astype("<u8").tobytes(),
            *(each for sums in numbers for each in sums),
            np.array(classes or (), "<u8").tobytes(),
        ]
    )


def unpack(payload: memoryview) -> DataStatistics:
    """Read what `pack` wrote. Raises WireError, which says what is wrong."""
    parts = _Parts(payload)
    rows, many, names_bytes, classes = _HEAD.unpack(parts.take(_HEAD.size))
    if not 1 <= rows <= _MOST_VALUES:
        raise WireError(f"{rows} rows")
    if not 1 <= many <= MAX_COLUMNS:
        raise WireError(f"{many} columns; expected 1 to {MAX_COLUMNS}")
    if not -1 <= classes <= MAX_CLASSES:
        raise WireError(f"{classes} classes; expected at most {MAX_CLASSES}")
    names = _names(bytes(parts.take(names_bytes)), many)
    facts = parts.array(_FACTS, many)
    if int(facts["leaves"].max()) > LEAVES:
        raise WireError(f"a column has {facts['leaves'].max()} leaves; expected at most {LEAVES}")
    ends = np.cumsum(facts["leaves"], dtype=np.int64)
    offsets = np.split(parts.array(np.dtype("<u2"), int(ends[-1])).astype(np.int64), ends[:-1])
    counts = np.split(parts.array(np.dtype("<u8"), int(ends[-1])), ends[:-1])
    columns = []
    for at, name in enumerate(names):
        sums = [
            int.from_bytes(parts.take(int(facts[at][each])), "little", signed=True)
            for each in ("total_bytes", "squares_bytes")
        ]
        try:
            columns.append(_column(facts[at], offsets[at], counts[at], sums, rows))
        except WireError as error:
            raise WireError(f"column {at} ({name!r}): {error}") from None
    of_classes = None if classes < 0 else tuple(map(int, parts.array(np.dtype("<u8"), classes)))
    if sum(of_classes or ()) > rows:
        raise WireError(f"the classes have {sum(of_classes or ())} rows, more than the {rows} there are")
    parts.require_end()
    return DataStatistics(rows, names, tuple(columns), of_classes)


class _Parts:
    """Takes one part after the other from a payload."""

    def __init__(self, payload: memoryview) -> None:
        self._rest = payload

    def take(self, size: int) -> memoryview:
        """Take bytes; WireError when there are not so many."""
        if size > len(self._rest):
            raise WireError(f"{len(self._rest)} bytes are left where {size} are expected")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def array(self, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
        """Take an array of so many elements."""
        return np.frombuffer(self.take(dtype.itemsize * size), dtype)

    def require_end(self) -> None:
        """Raise WireError when something is left."""
        if len(self._rest):
            raise WireError(f"{len(self._rest)} bytes are left over")


def _names(written: bytes, many: int) -> tuple[str, ...]:
    try:
        names = tuple(written.decode().split("\n"))
    except UnicodeDecodeError as error:
        raise WireError("the names of the columns are not UTF-8") from error
    if len(names) != many or len(set(names)) != many:
        raise WireError(f"{len(set(names))} different names for {many} columns")
    for name in names:
        if not (name and len(name) <= MAX_COLUMN_NAME and name.isprintable()):
            raise WireError(f"{name[:MAX_COLUMN_NAME]!r} is no name of a column")
    return names


def _column(
    facts: Any, offsets: NDArray[np.int64], given: NDArray[np.uint64], sums: Sequence[int], rows: int
) -> ColumnSums:
    """Return the sums of a column of so many rows."""
    missing, first, exponent, unit = (int(facts[name]) for name in ("missing", "first", "exponent", "unit"))
    there = sum(given.tolist())
    values = there + missing
    if not rows <= values <= _MOST_VALUES or int(given.min(initial=1)) < 1:
        raise WireError(f"{there} values and {missing} missing ones in {rows} rows")
    if not there:
        if first or any(sums):
            raise WireError("sums of a column without any value")
        return ColumnSums(missing)
    if not LOWEST_EXPONENT <= exponent <= HIGHEST_EXPONENT or not (
        LOWEST_EXPONENT - FRACTION_BITS <= unit <= exponent - FRACTION_BITS
    ):
        raise WireError(f"the exponent {exponent} with the unit {unit}")
    if abs(first) >= 2**LEAF_BITS or offsets[0] or offsets[-1] >= LEAVES or (np.diff(offsets) < 1).any():
        raise WireError("the leaves are not ascending numbers from the first one on")
    counts = np.zeros(int(offsets[-1]) + 1, np.int64)
    counts[offsets] = given
    # Each value lies in its leaf, so that the histogram bounds both sums.
    dtype = np.int64 if values <= _FEW_VALUES else object
    at, of_leaf = offsets.astype(dtype), counts[offsets].astype(dtype)
    for power, found in enumerate(sums, start=1):
        low, high = (int((of_leaf * (at + up) ** power).sum()) << power * (exponent - unit) for up in (0, 1))
        if not low <= found <= high:
            what = "sum" if power == 1 else "sum of squares"
            raise WireError(f"the {what} is not one of values in these leaves")
    if there * sums[1] < sums[0] ** 2:
        raise WireError("the sum of squares is too small for the sum")
    return ColumnSums(missing, exponent, first, counts, unit, sums[0], sums[1])


def _signed(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
