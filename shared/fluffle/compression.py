"""Codecs by name: a float32 vector to the bytes that travel, and back. Pure.

Use float32 unless the network is the limit. bfloat16 halves the bytes and keeps the range of float32 with 8
bits of precision; int8 makes them a quarter, right on average. topk sends the largest hundredth alone,
topk:0.05 the largest twentieth; it is for deltas, and the worker sends later what it left out. Each with
+zstd behind it costs time, and pays where many elements are zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import zstandard

from fluffle.codecs.compressed import CompressedVector, decompressed
from fluffle.codecs.floats import Bfloat16Vector, Float32Vector
from fluffle.codecs.int8 import Int8Vector
from fluffle.codecs.top_k import TopKVector
from fluffle.model import Vector

__all__ = ["CompressedVector", "decompressed"]

TOP_K = "topk"
SMALLEST_SHARE, LARGEST_SHARE = 0.0001, 0.5
ZSTD = "+zstd"
ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Codec:
    """How a vector is compressed, and its bytes read; `most_bytes` says how many a size takes at most.

    `read` raises ValueError when the bytes are no vector of this size.
    """

    most_bytes: Callable[[int], int]
    compress: Callable[[Vector, np.random.Generator], CompressedVector]
    read: Callable[[int, memoryview], CompressedVector]


def _top_k(share: float) -> Codec:
    return Codec(
        lambda size: TopKVector.most_bytes(size, share),
        lambda vector, random: TopKVector.of(vector, share, random),
        lambda size, payload: TopKVector.read(size, share, payload),
    )


CODECS: Mapping[str, Codec] = {
    "float32": Codec(
        Float32Vector.most_bytes, lambda vector, _: Float32Vector.of(vector), Float32Vector.read
    ),
    "bfloat16": Codec(
        Bfloat16Vector.most_bytes, lambda vector, _: Bfloat16Vector.of(vector), Bfloat16Vector.read
    ),
    "int8": Codec(Int8Vector.most_bytes, Int8Vector.of, Int8Vector.read),
    TOP_K: _top_k(0.01),
}


def require_codec(name: str) -> str:
    """Return the name of a codec; raises ValueError, which tells the known ones, for any other."""
    _codec(name)
    return name


def require_downlink_codec(name: str) -> str:
    """Return the name of a codec that a version can travel in; raises ValueError for any other."""
    if leaves_out(require_codec(name)):
        raise ValueError(
            f"must be float32, bfloat16 or int8, not {name}: a version needs all of its elements"
        )
    return name


def leaves_out(name: str) -> bool:
    """Tell whether a codec sends a part of the vector alone, so that the sender has to keep the rest."""
    return name.startswith(TOP_K)


def compress(name: str, vector: Vector, random: np.random.Generator) -> CompressedVector:
    """Return a vector in a codec, with the same bits for the same randomness; int8 rounds by it."""
    return _codec(name).compress(vector, random)


def is_packed(name: str) -> bool:
    """Tell whether a codec has zstd behind it, so that few bytes may stand for many."""
    return name.endswith(ZSTD)


def wire_bytes(name: str, vector: CompressedVector) -> memoryview:
    """Return the bytes of a vector as they travel in a codec: packed when it says +zstd."""
    if not is_packed(name):
        return vector.payload
    return memoryview(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(vector.payload))


def read_vector(name: str, size: int, travelled: memoryview) -> CompressedVector:
    """Return the vector of `size` elements that travelled in these bytes.

    Nothing is unpacked that is larger than such a vector may be. Raises ValueError when the bytes are none.
    """
    codec = _codec(name)
    payload = _unpacked(travelled, codec.most_bytes(size)) if is_packed(name) else travelled
    return codec.read(size, payload)


def most_bytes(name: str, size: int) -> int:
    """Return how many bytes a vector takes at most before zstd."""
    return _codec(name).most_bytes(size)


def _codec(name: str) -> Codec:
    plain = name.removesuffix(ZSTD)
    if plain in CODECS:
        return CODECS[plain]
    share = re.fullmatch(rf"{TOP_K}:(0\.[0-9]{{1,6}})", plain)
    if share is None or not SMALLEST_SHARE <= float(share[1]) <= LARGEST_SHARE:
        raise ValueError(
            f"must be one of {', '.join(CODECS)}, {TOP_K}:SHARE ({SMALLEST_SHARE:g} to {LARGEST_SHARE:g}), "
            f"each also with {ZSTD} behind it, not {name[:64]!r}"
        )
    return _top_k(float(share[1]))


def _unpacked(packed: memoryview, most: int) -> memoryview:
    try:
        announced = zstandard.get_frame_parameters(packed).content_size
        # A frame need not say its size, and then announces the largest number that there is.
        if announced > most:
            raise ValueError(f"it announces {announced} bytes, more than the {most} that the vector may take")
        plain = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"it is no zstd frame: {error}") from error
    return memoryview(plain)
