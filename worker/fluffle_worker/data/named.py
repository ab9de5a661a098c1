"""A table of numbers whose columns have names, with no copy of any of them. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class NamedTable:
    """Numbers [rows, columns] and the names of the columns: what a data frame is to the data steps."""

    columns: tuple[str, ...]
    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers."""
        return self.values.shape

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.asarray(self.values[:, self.columns.index(name)])

    def to_numpy(self) -> NDArray[Any]:
        """Return the numbers themselves."""
        return self.values
