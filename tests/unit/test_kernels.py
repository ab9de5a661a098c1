"""The folds in machine code give the bits of the codecs' own `add_to`, which numpy computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.codecs.int8 import GROUP
from fluffle.compression import CODECS, CompressedVector, compress, read_vector, travelling
from fluffle.model import Vector
from fluffle_aggregator.kernels import add_weighted, largest_magnitude

codecs = st.sampled_from([name + packed for name in CODECS for packed in ("", "+zstd")])
# About which a loop over groups, or over the elements of one vector register, can be wrong.
sizes = st.sampled_from([0, 1, 7, 8, 33, GROUP - 1, GROUP, GROUP + 1, 5 * GROUP, 70 * GROUP + 13])
scales = st.one_of(st.sampled_from([1.0, 0.0, 1e-30, 1e6]), st.floats(-4, 4))
offsets = st.integers(0, 3)


def received(codec: str, vector: Vector, offset: int = 0) -> CompressedVector:
    """Compress a vector, and read it where it begins so many bytes into what was received."""
    sent = travelling(codec, compress(codec, vector, np.random.default_rng(0)))
    return read_vector(codec, vector.size, memoryview(bytes(offset) + sent)[offset:])


def noise(size: int, seed: int) -> Vector:
    """Elements of all magnitudes down to subnormal ones."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(size) * np.exp(random.uniform(-90, 20, size))).astype(np.float32)


@settings(max_examples=300)
@given(codecs, sizes, scales, offsets, st.integers(0, 9))
def test_machine_code_gives_the_bits_of_numpy(
    codec: str, size: int, scale: float, offset: int, seed: int
) -> None:
    vector, total = received(codec, noise(size, seed), offset), noise(size, seed + 100)
    expected = total.copy()
    vector.add_to(expected, scale)

    add_weighted(total, vector, scale)

    assert total.tobytes() == expected.tobytes()


@settings(max_examples=100)
@given(codecs, sizes, offsets, st.integers(0, 9))
def test_machine_code_finds_the_magnitude_that_numpy_finds(
    codec: str, size: int, offset: int, seed: int
) -> None:
    vector = received(codec, noise(size, seed), offset)

    assert largest_magnitude(vector) == vector.largest_magnitude()


@pytest.mark.parametrize("place", [0, 7, GROUP + 2])
@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
def test_machine_code_sees_nan_and_infinity(place: int, odd: float) -> None:
    vector = noise(GROUP + 3, 0)
    vector[place] = odd

    found = largest_magnitude(received("float32", vector))

    assert np.isnan(found) if np.isnan(odd) else found == np.inf


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_nothing_beside_the_vector_is_touched(codec: str) -> None:
    whole = np.ones(3 * GROUP, np.float32)

    add_weighted(whole[5 : GROUP + 12], received(codec, noise(GROUP + 7, 1)), 0.5)

    assert (whole[:5] == 1).all()
    assert (whole[GROUP + 12 :] == 1).all()
    assert not (whole[5 : GROUP + 12] == 1).all()


@pytest.mark.parametrize("codec", CODECS)
def test_vectors_of_different_sizes_are_never_added(codec: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be added|must have one shape"):
        add_weighted(np.zeros(4, np.float32), received(codec, noise(5, 0)), 1.0)


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize(
    "total", [np.zeros(5), np.zeros(10, np.float32)[::2], np.broadcast_to(np.float32(0), 5)],
    ids=["float64", "apart", "read-only"],
)  # fmt: skip
def test_nothing_but_a_float32_vector_of_its_own_is_added_to(codec: str, total: Vector) -> None:
    with pytest.raises(TypeError, match="a float32 vector of its own"):
        add_weighted(total, received(codec, noise(5, 0)), 1.0)
