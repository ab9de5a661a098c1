"""Labels as a table holds them, as numbers: the class of each row, or its target. Pure.

Classes have names: text as it is, whole numbers without a point, and yes-or-no as 1 and 0. So a site that
writes 1.0 means the same class as one that writes 1. NaN, None and empty text are missing labels.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.table_model import MAX_TABLE_CLASSES, named

# More different whole numbers than these are targets, unless the settings say that they are classes.
MOST_GUESSED = 20

Values = NDArray[Any]


def names_of(label: str, values: Values) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different names in a column of labels, and the number of each row's name, -1 if missing.

    Raises TaskError for numbers that are not whole.
    """
    values = _as_numbers(values)
    kind = values.dtype.kind
    if kind in "OUS":
        texts = np.array(["" if _is_missing(each) else str(each) for each in values.tolist()], str)
        different, of_rows = np.unique(texts, return_inverse=True)
        return _without_missing(list(map(str, different)), of_rows.reshape(-1))
    if kind not in "biuf":
        raise TaskError(f"the label {label!r} holds {values.dtype}: classes are text or whole numbers")
    is_there = np.isfinite(values)
    numbers, of_present = np.unique(values[is_there], return_inverse=True)
    if kind == "f" and (broken := numbers[numbers != np.floor(numbers)]).size:
        raise TaskError(
            f"the label {label!r} holds {broken[0]:g}, and classes are text or whole numbers: correct it, or "
            'begin the federation with target = "number" in [tabular]'
        )
    of_rows = np.full(len(values), -1, np.int64)
    of_rows[is_there] = of_present.reshape(-1)
    return [str(int(each)) for each in numbers], of_rows


def classes_of_rows(label: str, values: Values, classes: Sequence[str]) -> Values:
    """Return the number of each row's class as int64, or as float64 with NaN where a label is missing.

    Raises TaskError, which names the value, where a label is none of the classes.
    """
    found, of_rows = names_of(label, values)
    numbers = {name: at for at, name in enumerate(classes)}
    if unknown := [name for name in found if name not in numbers]:
        rows = int(np.isin(of_rows, [found.index(name) for name in unknown]).sum())
        close = get_close_matches(unknown[0], classes, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise TaskError(
            f"the label {label!r} holds {named(unknown)} in {rows} rows{meant}, and the classes of this "
            f"federation are {named(list(classes))}: correct these labels, or leave them empty"
        )
    known = np.array([numbers[name] for name in found], np.int64)
    is_missing = of_rows < 0
    if not is_missing.any():
        return known[of_rows]
    labels = np.full(len(values), np.nan)
    labels[~is_missing] = known[of_rows[~is_missing]]
    return labels


def targets_of_rows(label: str, values: Values) -> Values:
    """Return labels that are numbers as float32, NaN where one is missing; TaskError where they are none."""
    values = _as_numbers(values)
    if values.dtype.kind in "biuf":
        return values.astype(np.float32)
    numbers = np.full(len(values), np.nan, np.float32)
    for at, each in enumerate(values.tolist()):
        if not _is_missing(each):
            try:
                numbers[at] = float(each)
            except (TypeError, ValueError):
                raise TaskError(
                    f"the label {label!r} holds {str(each)[:40]!r}, and this federation's label is a number: "
                    "correct it, or leave it empty"
                ) from None
    return numbers


@dataclass(eq=False)
class LabelSurvey:
    """What the labels of a table are like, after some pass over them; memory is bounded."""

    label: str
    names: set[str] = field(default_factory=set)
    is_text: bool = False
    is_yes_or_no: bool = True
    is_whole: bool = True
    count: int = 0
    mean: float = 0.0
    # The sum of the squares of the differences to the mean.
    spread: float = 0.0

    def add(self, values: Values) -> None:
        """Look at more rows."""
        values = _as_numbers(values)
        if values.dtype.kind in "OUS":
            different, of_rows = names_of(self.label, values)
            self.count += int((of_rows >= 0).sum())
            self.is_text |= bool(different)
            self._add_names(different)
            return
        self.is_yes_or_no &= values.dtype.kind == "b"
        present = values[np.isfinite(values)].astype(np.float64)
        if not present.size:
            return
        self._merge(present)
        self.is_whole &= bool((present == np.floor(present)).all())
        if self.is_whole and len(self.names) <= MAX_TABLE_CLASSES:
            self._add_names(str(int(each)) for each in np.unique(present))

    def _merge(self, present: Values) -> None:
        """Merge mean and spread with those of more labels, without losing digits of a large mean."""
        count, mean = present.size, float(present.mean())
        both, apart = self.count + count, mean - self.mean
        self.spread += float(np.square(present - mean).sum()) + apart**2 * self.count * count / both
        self.mean += apart * count / both
        self.count = both

    def _add_names(self, names: Iterable[str]) -> None:
        if len(self.names) <= MAX_TABLE_CLASSES:
            self.names.update(names)

    @property
    def are_classes(self) -> bool:
        """Whether these look like classes and not like a number."""
        return self.is_text or self.is_yes_or_no or (self.is_whole and len(self.names) <= MOST_GUESSED)

    @property
    def deviation(self) -> float:
        """The standard deviation of labels that are numbers; 1 where they are all the same."""
        return float(np.sqrt(self.spread / self.count)) if self.spread > 0 else 1.0

    def classes(self) -> tuple[str, ...]:
        """Return the classes in ascending order. Raises TaskError where there are too few or too many."""
        if not self.is_text and not self.is_whole:
            raise TaskError(
                f"the label {self.label!r} holds numbers that are not whole, and classes are text or whole "
                'numbers: leave out target = "classes" in [tabular]'
            )
        if len(self.names) > MAX_TABLE_CLASSES:
            raise TaskError(
                f"the label {self.label!r} has more than {MAX_TABLE_CLASSES:,} different values: it is no "
                "column of classes"
            )
        if len(self.names) < 2:
            raise TaskError(
                f"all labels {self.label!r} of the data are {named(sorted(self.names))}, and a model tells 2 "
                "classes or more: name them all as classes in [tabular]"
            )
        return tuple(sorted(self.names) if self.is_text else sorted(self.names, key=int))


def _as_numbers(values: Values) -> Values:
    """Return an array of objects that are all numbers or missing as float64; any other as it is."""
    if values.dtype.kind != "O":
        return values
    objects = values.tolist()
    if any(isinstance(each, str) for each in objects):
        return values
    try:
        return np.array([np.nan if _is_missing(each) else float(each) for each in objects], np.float64)
    except (TypeError, ValueError):
        return values


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return value == "" or (isinstance(value, float) and math.isnan(value))


def _without_missing(names: list[str], of_rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Drop the empty name, which sorts first, and let its rows be -1."""
    return (names[1:], of_rows - 1) if names and not names[0] else (names, of_rows)
