"""Codecs by name: a float32 vector to the bytes of a message, and back. Pure.

Use float32 unless the network is the limit. bfloat16 halves the bytes: the range of float32 with 8 bits of
precision. int8 makes them a quarter, and is right on average. topk sends only the largest hundredth of a
delta, topk:0.05 the largest twentieth, and the worker sends later what it left out. +zstd behind a codec's
name costs time, and helps where many elements are zero.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Protocol

import numpy as np
import zstandard

from fluffle.codecs.compressed import CompressedVector, decompressed
from fluffle.codecs.floats import Bfloat16Vector, Float32Vector
from fluffle.codecs.int8 import Int8Vector
from fluffle.codecs.masked import MaskedCodec
from fluffle.codecs.sealed import SealedCodec
from fluffle.codecs.top_k import TopK
from fluffle.fields import parsed
from fluffle.model import Vector
from fluffle.sealed.plan import SEALED
from fluffle.secure.modulus import BITS, Modulus
from fluffle.secure.plan import masked_codec

__all__ = ["CompressedVector", "decompressed"]

TOP_K = "topk"
SMALLEST_SHARE, LARGEST_SHARE = 0.0001, 0.5
ZSTD = "+zstd"
ZSTD_LEVEL = 1


class Codec(Protocol):
    """How a vector is compressed, and how it is read; a class of CompressedVector is one."""

    def most_bytes(self, size: int) -> int:
        """Return how many bytes a vector takes at most."""

    def of(self, vector: Vector, random: np.random.Generator) -> CompressedVector:
        """Return a compressed vector."""

    def read(self, size: int, payload: memoryview) -> CompressedVector:
        """Return the vector in these bytes. Raises ValueError when they are none of this size."""


CODECS: Mapping[str, Codec] = {
    "float32": Float32Vector,
    "bfloat16": Bfloat16Vector,
    "int8": Int8Vector,
    "topk": TopK(0.01),
}
# Secure aggregation chooses these by itself.
MASKED_CODECS: Mapping[str, MaskedCodec] = {masked_codec(bits): MaskedCodec(Modulus(bits)) for bits in BITS}


# And a sealed federation this one.
SEALED_CODEC = SealedCodec()


def require_codec(name: str) -> str:
    """Return the name of a codec that may be chosen. Raises ValueError that names them for any other."""
    if name in MASKED_CODECS:
        raise ValueError(f"must not be {name}, which secure_aggregation chooses by itself: leave it out")
    if name == SEALED:
        raise ValueError("must not be sealed, which the setting sealed chooses by itself: leave it out")
    return _require_known(name)


def _require_known(name: str) -> str:
    _codec(name)
    return name


CodecName = Annotated[str, parsed(_require_known)]


def require_downlink_codec(name: str) -> str:
    """Return the name of a codec for whole versions. Raises ValueError for any other."""
    if leaves_out(require_codec(name)):
        raise ValueError(
            f"must be float32, bfloat16 or int8, not {name}: a version needs all of its elements"
        )
    return name


def leaves_out(name: str) -> bool:
    """Return whether a codec sends only a part of the vector, so that the sender has to keep the rest."""
    return name.startswith(TOP_K)


def is_masked(name: str) -> bool:
    """Return whether a codec holds masked numbers, which mean nothing before their sum is opened."""
    return name in MASKED_CODECS


def bits_of_masked(name: str) -> int:
    """Return how many bits each number of a codec of masked numbers has."""
    return MASKED_CODECS[name].modulus.bits


def compress(name: str, vector: Vector, random: np.random.Generator) -> CompressedVector:
    """Return a vector in a codec; the same state of `random` gives the same bits."""
    return _codec(name).of(vector, random)


def is_packed(name: str) -> bool:
    """Return whether a codec has zstd behind it, so that few bytes may stand for many."""
    return name.endswith(ZSTD)


def wire_bytes(name: str, vector: CompressedVector) -> memoryview:
    """Return the bytes of a vector in a message: packed if the codec's name ends with +zstd."""
    if not is_packed(name):
        return vector.payload
    return memoryview(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(vector.payload))


def read_vector(name: str, size: int, received: memoryview) -> CompressedVector:
    """Return the vector of `size` elements in the bytes of a message.

    Nothing larger than such a vector may be is unpacked. Raises ValueError when the bytes are no such vector.
    """
    codec = _codec(name)
    payload = unpacked(received, codec.most_bytes(size)) if is_packed(name) else received
    return codec.read(size, payload)


def most_bytes(name: str, size: int) -> int:
    """Return how many bytes a vector takes at most before zstd."""
    return _codec(name).most_bytes(size)


def _codec(name: str) -> Codec:
    if name in MASKED_CODECS:
        return MASKED_CODECS[name]
    if name == SEALED:
        return SEALED_CODEC
    plain = name.removesuffix(ZSTD)
    if plain in CODECS:
        return CODECS[plain]
    share = re.fullmatch(rf"{TOP_K}:(0\.[0-9]{{1,6}})", plain)
    if share is None or not SMALLEST_SHARE <= float(share[1]) <= LARGEST_SHARE:
        raise ValueError(
            f"must be one of {', '.join(CODECS)}, {TOP_K}:SHARE ({SMALLEST_SHARE:g} to {LARGEST_SHARE:g}), "
            f"each also with {ZSTD} behind it, not {name[:64]!r}"
        )
    return TopK(float(share[1]))


def unpacked(packed: memoryview, most: int) -> memoryview:
    """Return what is in a zstd frame. Raises ValueError when it is none, or holds more bytes than `most`."""
    try:
        announced = zstandard.get_frame_parameters(packed).content_size
        # A frame need not say its size, and then announces the largest number that there is.
        if announced > most:
            raise ValueError(f"it announces {announced} bytes, more than the {most} that the vector may take")
        plain = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"it is no zstd frame: {error}") from error
    return memoryview(plain)
