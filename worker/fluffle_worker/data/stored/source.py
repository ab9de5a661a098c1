"""What every format offers: the parts of a data set that a site reads, and their rows, block by block."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import ConfigError, TaskError
from fluffle.storage import StoredFile

# A block has about so many bytes as arrays.
BLOCK_BYTES = 4 << 20


# From labels [rows] of whatever type to numbers [rows].
CodeLabels = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller asks for; `columns` None are all but the label. `image_size` is height and width.

    `code_labels` turns the labels of some rows, as the files have them, into float32. With it all rows are
    read, also those without a label.

    Raises ConfigError for what cannot be meant.
    """

    columns: tuple[str, ...] | None = None
    label: str | None = None
    classes: tuple[str | int, ...] = ()
    image_size: tuple[int, int] | None = None
    code_labels: CodeLabels | None = None

    def __post_init__(self) -> None:
        classes, size = self.classes, self.image_size
        if not all(isinstance(name, str) for name in self.columns or ()):
            raise ConfigError(f"columns= must be a list of names, not {list(self.columns or ())}")
        if self.label is not None and not isinstance(self.label, str):
            raise ConfigError(f"label= must be the name of one column, not {self.label!r}")
        if size is not None and not _is_size(size):
            raise ConfigError(
                f"image_size= must be a height and a width in pixels, such as (64, 64), not {size!r}"
            )
        are_numbers = all(isinstance(each, (int, np.integer)) for each in classes)
        are_texts = all(isinstance(each, str) for each in classes)
        if not (are_numbers or are_texts) or len(set(classes)) != len(classes):
            raise ConfigError(
                f"classes= must name different texts or different whole numbers, not {list(classes)}"
            )
        if self.columns is not None and (self.label in self.columns or not self.columns):
            raise ConfigError(
                f"columns= must name at least one column, and not the label: it names {list(self.columns)}"
            )


def _is_size(given: object) -> bool:
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        return False
    return all(is_whole_number(each, least=1) for each in given)


def is_whole_number(given: object, *, least: int) -> bool:
    """Return whether this is a whole number, of Python or of numpy, and not too small."""
    return isinstance(given, (int, np.integer)) and bool(given >= least)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one file, which are read in one go: `begin` to `end`, of its row group where it has some.

    `step` is how many rows there are from one to the next, for files whose number of rows nobody knows; then
    `end` is None.
    """

    file: StoredFile
    group: int = 0
    begin: int = 0
    end: int | None = None
    step: int = 1

    @property
    def rows(self) -> int | None:
        """How many rows it has, where that is known."""
        return None if self.end is None else self.end - self.begin


@dataclass(frozen=True, slots=True, eq=False)
class RowForm:
    """What one row becomes: the shapes of its inputs and its label, and the names of features and classes.

    `label_dtype` is None where there is no label.
    """

    features: tuple[str, ...]
    row_shape: tuple[int, ...]
    label: str | None
    label_shape: tuple[int, ...]
    label_dtype: Any
    classes: tuple[str | int, ...]

    def empty(self, rows: int) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
        """Return arrays for so many rows."""
        x = np.empty((rows, *self.row_shape), np.float32)
        if self.label_dtype is None:
            return x, None
        return x, np.empty((rows, *self.label_shape), self.label_dtype)

    @property
    def row_bytes(self) -> int:
        """How many bytes a row has as arrays."""
        x, y = self.empty(1)
        return x.nbytes + (0 if y is None else y.nbytes)


def require_float32(numbers: NDArray[Any], what: str) -> None:
    """Raise TaskError for a finite number that float32 cannot hold; `what` says where it lies."""
    with np.errstate(over="ignore"):
        too_large = np.isinf(numbers.astype(np.float32)) & np.isfinite(numbers)
    if too_large.any():
        raise too_large_for_float32(f"{numbers[too_large][0]:g}", what)


def too_large_for_float32(value: str, what: str) -> TaskError:
    """Return the error for such a number."""
    return TaskError(
        f"{what} holds {value}, and models train on float32, up to 3.4e38: leave the value empty if it is "
        "missing, or divide them all"
    )


class Block(Protocol):
    """Some rows that have been read."""

    @property
    def left_out(self) -> int:
        """How many rows were left out here, since they have no label."""

    def __len__(self) -> int: ...

    def write(self, x: NDArray[np.float32], y: NDArray[Any] | None) -> None:
        """Write them into arrays of this length."""


class Source(Protocol):
    """A data set in files of one format, as one site reads it."""

    @property
    def form(self) -> RowForm:
        """What a row becomes."""

    @property
    def parts(self) -> Sequence[Part]:
        """What the site reads, in the order of the files."""

    def blocks(self, parts: Iterable[Part]) -> Generator[Block, None, None]:
        """Read the rows of some parts, one block after the other. Raises TaskError, StorageError."""
