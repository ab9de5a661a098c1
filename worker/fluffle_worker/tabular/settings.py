"""The table [tabular] of the TOML file: which columns and classes there are, and what network tells them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fluffle.data_source import TABLE
from fluffle.settings import TableSettings

Units = Annotated[int, Field(ge=1, le=10_000)]


def _as_texts(found: Any) -> Any:
    """Return classes that are whole numbers as text; of anything else pydantic says what is wrong."""
    if not isinstance(found, list | tuple):
        return found
    return tuple(str(each) if type(each) is int else each for each in found)


class TabularSettings(TableSettings):
    """What whoever starts the aggregator says of the table; workers and evaluators need nothing of it.

    What is given at a worker or an evaluator all the same must be what the federation's model has.
    """

    part: ClassVar[str] = TABLE

    columns: tuple[str, ...] | None = Field(
        None,
        description="Columns that the model takes, in this order. Default: all columns of the data but the "
        "label, in the order of its first file.",
    )
    leave_out: tuple[str, ...] = Field(
        (), description='Columns that the model does not take, such as ["patient_id"], instead of columns.'
    )
    target: Literal["auto", "classes", "number"] = Field(
        "auto",
        description="What the label is: classes (text or whole numbers), or a number. With auto, text and "
        "yes-or-no are classes, so are up to 20 different whole numbers, and all else is a number.",
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(_as_texts)] | None = Field(
        None,
        description="Values of the label, each a class; values that are no class are refused at every site. "
        "Default: those that the data has, in ascending order.",
    )
    center: float | None = Field(
        None,
        description="About the mean of a label that is a number, by which the network's output is scaled. "
        "Default: that of the data.",
    )
    scale: float | None = Field(
        None, gt=0, description="About the standard deviation of a label that is a number, likewise."
    )
    hidden: tuple[Units, ...] = Field(
        (64, 32), max_length=16, description="Units of each hidden layer; [] for a linear model."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the hidden units that are dropped at random in training."
    )

    @model_validator(mode="after")
    def _say_nothing_twice(self) -> Self:
        if self.columns is not None and self.leave_out:
            raise ValueError("columns and leave_out are both set: give one of them")
        if self.classes is not None and self.target == "number":
            raise ValueError('classes are given and target is "number": give one of them')
        scaled = [name for name in ("center", "scale") if getattr(self, name) is not None]
        if scaled and (self.classes is not None or self.target == "classes"):
            raise ValueError(f"{scaled[0]} is for a label that is a number, and this one has classes")
        return self

    @property
    def says_number(self) -> bool:
        """Whether the label is said to be a number."""
        return self.target == "number" or self.center is not None or self.scale is not None
