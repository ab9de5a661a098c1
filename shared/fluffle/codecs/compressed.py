"""A vector as it travels, and what can be done with it as it is. Pure.

It is walked through in blocks that stay in the cache, so that a compressed vector never exists as a whole
vector of float32, unless somebody asks for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import Field
from typing import Any, ClassVar, Protocol

import numpy as np

from fluffle.model import Vector


class CompressedVector(Protocol):
    """A float32 vector in the bytes of some codec, which it only reads: they may be a message's own.

    It is a dataclass with the field `payload`.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def size(self) -> int:
        """The number of elements."""

    @property
    def payload(self) -> memoryview:
        """The bytes."""

    def largest_magnitude(self) -> float:
        """Return a magnitude that no element exceeds; NaN or infinity when an element is not finite."""

    def blocks(self) -> Iterator[Vector]:
        """Walk through the vector, in blocks that are good until the next one is asked for."""

    def add_to(self, total: Vector, scale: float) -> None:
        """Add scale * vector to `total` in place: the same bits as `add_scaled` of what it decompresses to.

        (A -0 stays one where the vector has no entry.) The scale is rounded once, to float32. Raises
        ValueError when the sizes differ.
        """


def decompressed(vector: CompressedVector) -> Vector:
    """Return the whole vector as float32, which takes that much memory."""
    whole = np.empty(vector.size, np.float32)
    for part, values in side_by_side(whole, vector.blocks()):
        part[:] = values
    return whole


def side_by_side(total: Vector, blocks: Iterable[Vector]) -> Iterator[tuple[Vector, Vector]]:
    """Walk through a vector beside the blocks of another one of its size."""
    start = 0
    for values in blocks:
        yield total[start : start + values.size], values
        start += values.size


def add_blocks(total: Vector, size: int, blocks: Iterable[Vector], scale: float) -> None:
    """Add scale * each block to its place in `total`; what `add_to` promises. The blocks are overwritten."""
    require_same_size(total, size)
    factor = np.float32(scale)
    for sums, values in side_by_side(total, blocks):
        if factor != 1:
            np.multiply(values, factor, out=values)
        np.add(sums, values, out=sums)


def require_same_size(total: Vector, size: int) -> None:
    """Raise ValueError unless a vector of `size` elements can be added to `total`."""
    if total.size != size:
        raise ValueError(f"a vector of {size} elements cannot be added to one of {total.size}")


def require_length(expected: int, payload: memoryview) -> None:
    """Raise ValueError unless a payload has the length that it must have."""
    if len(payload) != expected:
        raise ValueError(f"the vector takes {expected} bytes, but has {len(payload)}")
