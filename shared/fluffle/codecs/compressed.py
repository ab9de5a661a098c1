"""A vector in the bytes of a codec, and what can be computed from them. Pure.

A compressed vector is read in blocks that stay in the processor's cache: a whole float32 vector is made only
by `decompressed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from fluffle.model import Vector
from fluffle.vector_math import side_by_side


@dataclass(frozen=True, slots=True)
class CompressedVector(ABC):
    """A float32 vector of `size` elements in the bytes of a codec, which may be those of a message."""

    size: int
    payload: memoryview

    @property
    def start(self) -> int:
        """The first element that is there: those before it count as zero, since nobody knows them."""
        return 0

    @property
    def tail(self) -> "CompressedVector":
        """The vector of the elements that are there."""
        return self

    @abstractmethod
    def magnitude_bound(self) -> float:
        """Return a magnitude that no element exceeds; NaN or infinity when an element is not finite."""

    @abstractmethod
    def blocks(self) -> Iterator[Vector]:
        """Yield the vector in blocks; each may be overwritten when the next one is read."""

    def owned(self) -> Self:
        """Return the same vector in bytes of its own: those of a message are released."""
        return replace(self, payload=memoryview(bytes(self.payload)))

    def add_to(self, total: Vector, scale: float) -> None:
        """Add scale * vector to `total` in place; the result has the bits of `add_scaled`.

        (Where the vector has no entry, a -0 in `total` stays -0.) The scale is rounded once, to float32.
        Raises ValueError when the sizes differ.
        """
        self.require_size_of(total)
        factor = np.float32(scale)
        for sums, values in side_by_side(total, self.blocks()):
            if factor != 1:
                np.multiply(values, factor, out=values)
            np.add(sums, values, out=sums)

    def require_size_of(self, total: Vector) -> None:
        """Raise ValueError unless this vector can be added to `total`."""
        if total.size != self.size:
            raise ValueError(f"a vector of {self.size} elements cannot be added to one of {total.size}")


def decompressed(vector: CompressedVector) -> Vector:
    """Return the whole vector as float32, which takes that much memory."""
    whole = np.empty(vector.size, np.float32)
    for part, values in side_by_side(whole, vector.blocks()):
        part[:] = values
    return whole


def require_length(expected: int, payload: memoryview) -> None:
    """Raise ValueError unless a payload has the length that it must have."""
    if len(payload) != expected:
        raise ValueError(f"the vector takes {expected} bytes, but has {len(payload)}")
