"""A model as a layout and one float32 vector; every formula of Fluffle runs over that vector. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fluffle.errors import LayoutError

Vector = NDArray[np.float32]
Weights = Mapping[str, NDArray[np.generic]]

FLOATS: Mapping[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
INTEGERS: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model: its name, its shape (empty for a scalar) and the name of its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the tensor is averaged; the others are copied from the newest update."""
        return self.dtype in FLOATS

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in their order: how named arrays become one vector, and back.

    Float tensors of any width lie in the vector as float32, one after the other in C order. Integer and
    boolean tensors are not averaged: they travel beside the vector, as they are, in little-endian bytes.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            raise LayoutError(
                f"tensor names must be unique, but {', '.join(map(repr, twice[:5]))} stand there twice"
            )
        for spec in self.tensors:
            if spec.dtype not in FLOATS and spec.dtype not in INTEGERS:
                known = ", ".join([*FLOATS, *INTEGERS])
                raise LayoutError(f"tensor {spec.name} has the dtype {spec.dtype}; known are {known}")

    @classmethod
    def of(cls, weights: Weights) -> Layout:
        """Describe named arrays, in their order."""
        return cls(tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in weights.items()))

    @cached_property
    def size(self) -> int:
        """The number of elements of the vector."""
        return sum(spec.size for spec in self.tensors if spec.is_float)

    @cached_property
    def integers_size_bytes(self) -> int:
        """The number of bytes that travel beside the vector."""
        return sum(spec.size * INTEGERS[spec.dtype].itemsize for spec in self.tensors if not spec.is_float)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal characters that are equal for equal layouts only."""
        canonical = json.dumps([[spec.name, list(spec.shape), spec.dtype] for spec in self.tensors])
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def flatten(self, weights: Weights) -> tuple[Vector, bytes]:
        """Return the float tensors as one float32 vector [size], and the integer tensors as bytes.

        Raises LayoutError when names, shapes or dtypes differ from this layout.
        """
        self.require(Layout.of(weights))
        vector = np.empty(self.size, np.float32)
        integers = bytearray()
        offset = 0
        for spec in self.tensors:
            array = weights[spec.name]
            if spec.is_float:
                vector[offset : offset + spec.size] = array.reshape(-1)
                offset += spec.size
            else:
                integers += array.astype(INTEGERS[spec.dtype]).tobytes()
        return vector, bytes(integers)

    def restore(self, vector: Vector, integers: bytes) -> dict[str, NDArray[np.generic]]:
        """Return named arrays in their own shapes and dtypes; float32 tensors are views of the vector."""
        if vector.shape != (self.size,) or len(integers) != self.integers_size_bytes:
            raise LayoutError(
                f"expected {self.size} floats and {self.integers_size_bytes} bytes of integers, "
                f"found {vector.size} and {len(integers)}"
            )
        weights: dict[str, NDArray[np.generic]] = {}
        offset = taken = 0
        for spec in self.tensors:
            if spec.is_float:
                flat = vector[offset : offset + spec.size]
                weights[spec.name] = flat.reshape(spec.shape).astype(FLOATS[spec.dtype], copy=False)
                offset += spec.size
            else:
                dtype = INTEGERS[spec.dtype]
                flat_integers = np.frombuffer(integers, dtype, count=spec.size, offset=taken)
                weights[spec.name] = flat_integers.reshape(spec.shape).astype(dtype.newbyteorder("="))
                taken += spec.size * dtype.itemsize
        return weights

    def require(self, other: Layout) -> None:
        """Raise LayoutError that names the first difference, unless `other` is equal to this layout."""
        difference = self.difference(other)
        if difference:
            raise LayoutError(difference)

    def difference(self, other: Layout) -> str | None:
        """Return the first difference of another layout from this one in words, or None."""
        for expected, found in zip(self.tensors, other.tensors, strict=False):
            if expected != found:
                return f"the federation's model has {expected} where this one has {found}"
        if len(self.tensors) != len(other.tensors):
            return f"the federation's model has {len(self.tensors)} tensors, this one {len(other.tensors)}"
        return None


def largest_magnitude(vector: Vector) -> float:
    """Return the largest absolute value of a vector, NaN if it holds one; in blocks that fit the cache."""
    largest = 0.0
    for start in range(0, vector.size, 65536):
        block = vector[start : start + 65536]
        # NaN passes through numpy's max and min, but not through Python's.
        extreme = float(np.maximum(block.max(), -block.min()))
        if math.isnan(extreme):
            return extreme
        largest = max(largest, extreme)
    return largest
