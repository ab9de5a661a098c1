"""Codecs: a float32 vector to the bytes that travel, and back. Pure.

Use float32 unless the network is the limit; bfloat16 halves the bytes and keeps the range of float32 with
8 bits of precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from fluffle.model import Vector


@dataclass(frozen=True, slots=True)
class Codec:
    """How a vector travels: `compress` gives the bytes, `decompress` the float32 vector [size]."""

    name: str
    bytes_per_element: int
    compress: Callable[[Vector], memoryview]
    decompress: Callable[[memoryview], Vector]

    def size_bytes(self, size: int) -> int:
        """Return how many bytes a vector of `size` elements takes."""
        return size * self.bytes_per_element


def _float32_bytes(vector: Vector) -> memoryview:
    return np.ascontiguousarray(vector, "<f4").view(np.uint8).data


def _float32_vector(payload: memoryview) -> Vector:
    return np.frombuffer(payload, "<f4")  # a view: no copy


def _bfloat16_bytes(vector: Vector) -> memoryview:
    return vector.astype(ml_dtypes.bfloat16).view(np.uint8).data


def _bfloat16_vector(payload: memoryview) -> Vector:
    return np.frombuffer(payload, ml_dtypes.bfloat16).astype(np.float32)


CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("float32", 4, _float32_bytes, _float32_vector),
        Codec("bfloat16", 2, _bfloat16_bytes, _bfloat16_vector),
    )
}
