"""The columns, labels and rows of the files of a table."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.stored.dataset import columns_in, opened
from fluffle_worker.data.stored.source import Wanted
from fluffle_worker.tabular.labels import LabelSurvey, Values

# What each column holds that is no number; empty for numbers.
Kinds = Mapping[str, str]
ROWS_AT_ONCE = 2**16


def columns_of(data: str) -> Kinds:
    """Return the names of the columns of a table, in their order, and what they hold."""
    return {name: _said(column.kind, column.shape, column.said) for name, column in columns_in(data).items()}


def require_numbers(kinds: Kinds, columns: Sequence[str], data: str, instead: str = "") -> None:
    """Raise TaskError for a column that holds no numbers; `instead` is what else may be done about it."""
    others = [name for name in columns if kinds[name]]
    if others:
        more = f" (there are {len(others) - 1} more such columns)" if others[1:] else ""
        raise TaskError(
            f"the column {others[0]!r} of {data} holds {kinds[others[0]]}, and the model takes numbers: turn "
            "it into numbers at every site in the same way, such as one 0-or-1 column for each value"
            f"{f', or {instead}' if instead else ''}{more}"
        )


def require_label(kinds: Kinds, label: str, data: str) -> None:
    """Raise TaskError for a column that holds neither numbers nor text."""
    if kinds[label] not in ("", "text"):
        raise TaskError(
            f"the label {label!r} of {data} holds {kinds[label]}, and a model tells a number, or classes "
            "that are text or whole numbers: name another column"
        )


def survey_labels(data: str, kinds: Kinds, label: str) -> LabelSurvey:
    """Return what the labels of a table are like; of each row little more than its label is read."""
    beside = next((name for name, other in kinds.items() if name != label and not other), None)
    if beside is None:
        raise TaskError(f"{data} has no column of numbers beside {label!r}: there is nothing to learn from")
    found = LabelSurvey(label)

    def look(labels: Values) -> NDArray[np.float32]:
        found.add(labels)
        return np.zeros(len(labels), np.float32)

    for _ in opened(data, Wanted((beside,), label, code_labels=look)).minibatches(ROWS_AT_ONCE):
        pass
    return found


def read_rows(
    data: str, columns: Sequence[str], label: str, code: Callable[[Values], Values]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return all rows: inputs [rows, columns], NaN where a value is missing, and labels as `code` gives them.

    Little more memory is needed than the arrays take.
    """
    x, y = opened(data, Wanted(tuple(columns), label, code_labels=code)).arrays()
    return x, y


def _said(kind: str, shape: tuple[int, ...], said: str) -> str:
    if kind == "number" and not shape:
        return ""
    return "text" if kind == "text" and not shape else said
