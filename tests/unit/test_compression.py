"""Codecs: how exactly a vector travels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fluffle.compression import CODECS
from fluffle.model import Vector

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.integers(0, 50).flatmap(lambda size: arrays(np.float32, size, elements=finite))
# Beyond this, the nearest bfloat16 is an infinity.
LARGEST_BFLOAT16 = float(np.frombuffer(b"\x00\x00\x7f\x7f", "<f4")[0])


def travelled(codec: str, vector: Vector) -> Vector:
    payload = bytes(CODECS[codec].compress(vector))
    assert len(payload) == CODECS[codec].size_bytes(vector.size)
    return CODECS[codec].decompress(memoryview(payload))


@given(vectors)
def test_float32_keeps_every_bit(vector: Vector) -> None:
    assert travelled("float32", vector).tobytes() == vector.tobytes()


@given(vectors.filter(lambda vector: bool((np.abs(vector) <= LARGEST_BFLOAT16).all())))
def test_bfloat16_is_right_to_half_a_unit_in_its_last_place(vector: Vector) -> None:
    found = travelled("bfloat16", vector)

    # 8 bits of precision, and a fixed step below the smallest normal number.
    exact = vector.astype(np.float64)
    step = np.maximum(2.0 ** (np.frexp(np.abs(exact))[1] - 8), 2.0**-133)
    assert (np.abs(found - exact) <= step / 2).all()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (-0.5, -0.5),
        (1.0 + 2**-8, 1.0),  # a tie goes to the even one
        (1.0 + 3 * 2**-8, 1.0 + 2**-6),
        (1.0 + 2**-8 + 2**-20, 1.0 + 2**-7),
    ],
)
def test_bfloat16_rounds_to_the_nearest_and_ties_to_even(value: float, found: float) -> None:
    assert travelled("bfloat16", np.array([value], np.float32)).tolist() == [found]


@pytest.mark.parametrize("codec", CODECS)
def test_nan_and_infinity_travel_so_that_admission_sees_them(codec: str) -> None:
    found = travelled(codec, np.array([np.nan, np.inf, -np.inf], np.float32))

    assert np.isnan(found[0])
    assert found[1:].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("codec", CODECS)
def test_a_vector_that_lies_apart_in_memory_travels_too(codec: str) -> None:
    every_other = np.arange(10, dtype=np.float32)[::2]

    assert travelled(codec, every_other).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("codec", CODECS)
def test_compressing_leaves_the_callers_vector_as_it_was(codec: str) -> None:
    vector = np.array([1 / 3, 2 / 3], np.float32)
    before = vector.tobytes()

    travelled(codec, vector)

    assert vector.tobytes() == before
