"""What a model of a table means: which column each of its inputs is, and what its outputs stand for. Pure.

Two models with the same tensors are not the same model when the first input of one is the age and that of the
other the weight: their updates must never be added up. So this is a part of a model's layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from fluffle.errors import LayoutError
from fluffle.fields import Positive, at_most, must
from fluffle.survey.columns import MAX_COLUMNS
from fluffle.survey.shape import ColumnName

MAX_TABLE_CLASSES = 1_000
MAX_HIDDEN = 16
# Names in a sentence, before "and 7 more", and in a line of the log.
MOST_NAMED, MOST_LOGGED = 5, 50

Dropout = Annotated[float, must(lambda share: 0 <= share < 1, "{} is not at least 0 and below 1")]
Scale = Annotated[float, must(lambda scale: scale > 0, "{} is not above 0")]


@dataclass(frozen=True, slots=True)
class TableModel:
    """The inputs, outputs and hidden layers of a model of a table.

    `columns` are its inputs, in their order, and `label` the column that it tells. With `classes` its outputs
    are these, as text; None is a number, which the outputs of the network are scaled to: it expects a mean of
    about `center` and a standard deviation of about `scale`. `hidden` are the units of each hidden layer.
    With `surveyed` a layer before them scales each column by the federation's survey.
    """

    columns: Annotated[tuple[ColumnName, ...], at_most(MAX_COLUMNS)]
    label: ColumnName
    classes: Annotated[tuple[ColumnName, ...], at_most(MAX_TABLE_CLASSES)] | None = None
    hidden: Annotated[tuple[Positive, ...], at_most(MAX_HIDDEN)] = ()
    surveyed: bool = True
    dropout: Dropout = 0.0
    center: float = 0.0
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        """Raise LayoutError, which says what is wrong, unless such a model can be."""
        names = [*self.columns, self.label]
        if twice := sorted({each for each in names if names.count(each) > 1}):
            raise LayoutError(
                f"the column {twice[0]!r} is named more than once: each input is a column of its own, and "
                "the label is none of them"
            )
        if not self.columns:
            raise LayoutError("a model of a table needs at least 1 column beside the label")
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise LayoutError(
                f"a model needs at least 2 classes, each with a name of its own, not {list(self.classes[:5])}"
            )

    @classmethod
    def from_list(cls, found: list[Any]) -> Self:
        """Return what `as_list` gave."""
        columns, label, classes, hidden, surveyed, *numbers = found
        known = None if classes is None else tuple(classes)
        return cls(tuple(columns), label, known, tuple(hidden), bool(surveyed), *map(float, numbers))

    def as_list(self) -> list[Any]:
        """Return the fields as JSON has them, the same for equal models."""
        classes = None if self.classes is None else list(self.classes)
        numbers = map(float, (self.dropout, self.center, self.scale))
        return [list(self.columns), self.label, classes, list(self.hidden), self.surveyed, *numbers]

    def difference(self, other: "TableModel", whose: str) -> str | None:
        """Return the first difference to the model of another table in words, or None.

        `whose` says whose model this is.
        """
        if self.columns != other.columns:
            return f"{whose} {self._other_columns(other)}"
        if self.label != other.label:
            return f"{whose} tells the column {self.label!r}, this one {other.label!r}"
        if self.outputs != other.outputs:
            return f"{whose} tells {self.outputs}, this one {other.outputs}"
        if self != other:
            return f"{whose} has {self.network}, this one {other.network}"
        return None

    @property
    def in_words(self) -> dict[str, str | int]:
        """All of it for a line of the log."""
        return {
            "columns": len(self.columns),
            "names": named(self.columns, MOST_LOGGED),
            "label": self.label,
            "tells": self.outputs,
            "network": self.network,
        }

    @property
    def told(self) -> str:
        """All outputs in their order."""
        return "a number" if self.classes is None else f"the classes {', '.join(self.classes)}"

    @property
    def outputs(self) -> str:
        """What the outputs stand for, in words."""
        if self.classes is None:
            return "a number"
        return f"{len(self.classes)} classes ({named(self.classes)})"

    @property
    def network(self) -> str:
        """The rest of the model, in words."""
        units = ", ".join(map(str, self.hidden)) or "none"
        scaled = "" if self.classes is not None else f", center {self.center:g}, scale {self.scale:g}"
        inputs = "scaled by the survey" if self.surveyed else "not scaled"
        return f"hidden units {units}, dropout {self.dropout:g}{scaled}, inputs {inputs}"

    def _other_columns(self, other: "TableModel") -> str:
        missing = [each for each in self.columns if each not in other.columns]
        more = [each for each in other.columns if each not in self.columns]
        if missing:
            also = f", which has {named(more)} instead" if more else ""
            return f"takes {named(missing)}, and this one does not{also}"
        if more:
            return f"does not take {named(more)}, and this one does"
        at = next(at for at, name in enumerate(self.columns) if name != other.columns[at])
        return f"takes {self.columns[at]!r} as its column {at}, where this one takes {other.columns[at]!r}"


def named(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Return some names for a sentence: 'age', 'weight' and 3 more."""
    shown = ", ".join(repr(each) for each in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
