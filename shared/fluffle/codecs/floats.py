"""The codecs float32 and bfloat16. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import ml_dtypes
import numpy as np

from fluffle.codecs.compressed import CompressedVector, require_length
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, add_scaled, largest_magnitude, matching_blocks, scratch_block


@dataclass(frozen=True, slots=True)
class Float32Vector(CompressedVector):
    """The elements themselves, read in place."""

    @staticmethod
    def most_bytes(size: int) -> int:
        """Return how many bytes a vector takes."""
        return 4 * size

    @classmethod
    def of(cls, vector: Vector, _random: object = None) -> Self:
        """Return a vector with its own bytes, not a copy."""
        return cls(vector.size, np.ascontiguousarray(vector, "<f4").view(np.uint8).data)

    @classmethod
    def read(cls, size: int, payload: memoryview) -> Self:
        """Return the vector in these bytes; raises ValueError when they are none."""
        require_length(cls.most_bytes(size), payload)
        return cls(size, payload)

    @property
    def values(self) -> Vector:
        """The elements, as a view of the bytes."""
        return np.frombuffer(self.payload, "<f4")

    def magnitude_bound(self) -> float:
        """Return the largest absolute value, NaN if there is one."""
        return largest_magnitude(self.values)

    def blocks(self) -> Iterator[Vector]:
        """Yield the vector in blocks."""
        return (block for (block,) in matching_blocks(self.values))

    def add_to(self, total: Vector, scale: float) -> None:
        """Add scale * vector to `total` in place."""
        add_scaled(total, self.values, scale)


@dataclass(frozen=True, slots=True)
class Bfloat16Vector(CompressedVector):
    """The upper half of each float32, rounded to the nearest, ties to even."""

    @staticmethod
    def most_bytes(size: int) -> int:
        """Return how many bytes a vector takes."""
        return 2 * size

    @classmethod
    def of(cls, vector: Vector, _random: object = None) -> Self:
        """Return a vector, rounded."""
        return cls(vector.size, vector.astype(ml_dtypes.bfloat16).view(np.uint8).data)

    @classmethod
    def read(cls, size: int, payload: memoryview) -> Self:
        """Return the vector in these bytes; raises ValueError when they are none."""
        require_length(cls.most_bytes(size), payload)
        return cls(size, payload)

    def magnitude_bound(self) -> float:
        """Return the largest absolute value, NaN or infinity if there is one."""
        # Without their sign, bfloat16s are in the order of their bits, and infinity and NaN above all.
        bits = np.frombuffer(self.payload, "<u2")
        largest = np.uint16(0)
        for start in range(0, self.size, BLOCK_SIZE):
            largest = max(largest, np.max(bits[start : start + BLOCK_SIZE] & np.uint16(0x7FFF)))
        return float(np.array(largest, np.uint16).view(ml_dtypes.bfloat16))

    def blocks(self) -> Iterator[Vector]:
        """Yield the vector in blocks; a bfloat16 is the upper half of the float32 that it stands for."""
        bits, scratch = np.frombuffer(self.payload, "<u2"), scratch_block(self.size)
        for start in range(0, self.size, BLOCK_SIZE):
            upper = bits[start : start + BLOCK_SIZE]
            values = scratch[: upper.size]
            np.left_shift(upper, 16, out=values.view(np.uint32), dtype=np.uint32)
            yield values
