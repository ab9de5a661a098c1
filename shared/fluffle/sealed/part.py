"""Which elements of a model's vector are sealed: all, or those of tensors that match a pattern. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Layout, TensorSpec, Vector


@dataclass(frozen=True, slots=True)
class SealedPart:
    """The sealed elements of a vector of `length` elements, as ascending ranges from start to before stop."""

    length: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many elements are sealed."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def open_size(self) -> int:
        """How many elements travel as usual."""
        return self.length - self.size

    @property
    def open_ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges between the sealed ones."""
        ends = [0, *(end for each in self.ranges for end in each), self.length]
        return tuple((start, stop) for start, stop in list(pairwise(ends))[::2] if start < stop)

    def sealed_of(self, vector: Vector) -> Vector:
        """Return the elements of a vector that are sealed, in their order."""
        return _gather(vector, self.ranges)

    def open_of(self, vector: Vector) -> Vector:
        """Return the elements of a vector that travel as usual, in their order."""
        return _gather(vector, self.open_ranges)

    def with_open(self, others: Vector) -> Vector:
        """Return a vector of the elements that travel as usual, with zeros where elements are sealed."""
        vector, taken = np.zeros(self.length, np.float32), 0
        for start, stop in self.open_ranges:
            vector[start:stop] = others[taken : taken + stop - start]
            taken += stop - start
        return vector

    def add_sealed(self, vector: Vector, sealed: NDArray[np.float64]) -> None:
        """Add to the sealed elements of a vector in place."""
        taken = 0
        for start, stop in self.ranges:
            vector[start:stop] += sealed[taken : taken + stop - start]
            taken += stop - start


def is_matching(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a tensor of this name is sealed; without patterns each one is."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@lru_cache(maxsize=16)
def sealed_part(layout: Layout, patterns: tuple[str, ...]) -> SealedPart:
    """Return which elements of the vector of a model are sealed."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for spec in trained_tensors(layout):
        stop = start + spec.size
        if spec.size and is_matching(spec.name, patterns):
            if ranges and ranges[-1][1] == start:
                ranges[-1] = ranges[-1][0], stop
            else:
                ranges.append((start, stop))
        start = stop
    return SealedPart(layout.size, tuple(ranges))


def trained_tensors(layout: Layout) -> list[TensorSpec]:
    """Return the tensors whose elements are in the vector, in its order."""
    return [each for each in layout.tensors if each.is_float and each.group == "trained"]


def _gather(vector: Vector, ranges: Sequence[tuple[int, int]]) -> Vector:
    if ranges == ((0, vector.size),):
        return vector
    return np.concatenate([np.empty(0, np.float32), *(vector[start:stop] for start, stop in ranges)])
