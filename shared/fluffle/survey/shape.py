"""What the data of all sites of a survey has in common. Pure."""

from dataclasses import dataclass
from typing import Annotated

from fluffle.fields import at_most, integer, must, text
from fluffle.survey.columns import MAX_COLUMNS

MAX_CLASSES = 10_000
# A name is shown in terminals and on pages.
MAX_COLUMN_NAME = 100
ColumnName = Annotated[
    str,
    text(MAX_COLUMN_NAME),
    must(lambda name: bool(name) and name.isprintable(), "{} is no name of a column"),
]


@dataclass(frozen=True, slots=True)
class SurveyShape:
    """The `names` of the columns, for each whether a row has `several` values, and the number of `classes`.

    -1 classes are none. With secure aggregation an answer says this in the clear, and nothing else.
    """

    names: Annotated[tuple[ColumnName, ...], at_most(MAX_COLUMNS)]
    several: Annotated[tuple[bool, ...], at_most(MAX_COLUMNS)]
    classes: Annotated[int, integer(-1, MAX_CLASSES)]

    @property
    def fault(self) -> str:
        """Why no data has this shape; empty where some does."""
        if not self.names or len(self.names) != len(self.several):
            return f"{len(self.names)} names of columns, and {len(self.several)} kinds"
        return "a column stands there twice" if len(set(self.names)) != len(self.names) else ""

    def difference(self, other: "SurveyShape") -> str:
        """Return in which way the data of another site differs; empty where it does not."""
        if len(other.names) != len(self.names):
            return f"it has {len(other.names)} columns, and the others have {len(self.names)}"
        for at, (name, wanted) in enumerate(zip(other.names, self.names, strict=True)):
            if name != wanted:
                return f"its column {at} is {name!r}, and that of the others is {wanted!r}"
        said = ("one value", "several values")
        for name, found_kind, wanted_kind in zip(self.names, other.several, self.several, strict=True):
            if found_kind != wanted_kind:
                return (
                    f"a row of it has {said[found_kind]} of the column {name!r}, and one of the others has "
                    f"{said[wanted_kind]}"
                )
        found, wanted_classes = other.classes_in_words, self.classes_in_words
        return "" if found == wanted_classes else f"it has {found}, and the others have {wanted_classes}"

    @property
    def classes_in_words(self) -> str:
        """How many classes there are."""
        return "no classes" if self.classes < 0 else f"{self.classes} classes"
