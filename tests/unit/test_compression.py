"""Codecs: how exactly a vector travels, and that adding it up is the same as adding what it stands for."""

from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from builders import values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fluffle.codecs.int8 import GROUP, Int8Vector, groups_of
from fluffle.compression import (
    CODECS,
    CompressedVector,
    compress,
    decompressed,
    leaves_out,
    most_bytes,
    read_vector,
    require_codec,
    wire_bytes,
)
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, add_scaled

NAMES = [name + packed for name in (*CODECS, "topk:0.3") for packed in ("", "+zstd")]
WHOLE = [name for name in NAMES if not leaves_out(name)]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.integers(0, 50).flatmap(lambda size: arrays(np.float32, size, elements=finite))
# What admission lets through; its limit is 2**50.
usable = st.floats(-(2.0**50), 2.0**50, width=32)
usable_vectors = st.integers(0, 50).flatmap(lambda size: arrays(np.float32, size, elements=usable))
# Of all sizes about which a walk in blocks can be wrong.
sizes = st.sampled_from(
    [0, 1, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP + 7, BLOCK_SIZE, BLOCK_SIZE + GROUP + 1]
)
# Beyond this, the nearest bfloat16 is an infinity.
LARGEST_BFLOAT16 = float(np.frombuffer(b"\x00\x00\x7f\x7f", "<f4")[0])


def travelled(codec: str, vector: Vector, seed: int = 0) -> CompressedVector:
    sent = compress(codec, vector, np.random.default_rng(seed))
    assert len(sent.payload) <= most_bytes(codec, vector.size)
    return read_vector(codec, vector.size, memoryview(bytes(wire_bytes(codec, sent))))


def noise(size: int, seed: int = 0) -> Vector:
    """A vector like a delta: many small elements of different magnitude in each place."""
    random = np.random.default_rng(seed)
    magnitude = np.exp(random.uniform(-20, 2, size))
    return (random.standard_normal(size) * magnitude).astype(np.float32)


def int8_reference(vector: CompressedVector) -> Vector:
    """The codec int8 in the plainest words: scale * level, group by group."""
    size, payload = vector.size, bytes(vector.payload)
    scales = np.frombuffer(payload[: 4 * groups_of(size)], "<f4")
    levels = np.frombuffer(payload[4 * groups_of(size) :], np.int8)
    return np.array([scales[place // GROUP] * np.float32(levels[place]) for place in range(size)], np.float32)


@given(vectors)
def test_float32_keeps_every_bit(vector: Vector) -> None:
    assert decompressed(travelled("float32", vector)).tobytes() == vector.tobytes()


@given(vectors.filter(lambda vector: bool((np.abs(vector) <= LARGEST_BFLOAT16).all())))
def test_bfloat16_is_right_to_half_a_unit_in_its_last_place(vector: Vector) -> None:
    found = decompressed(travelled("bfloat16", vector))

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
    assert values_of(travelled("bfloat16", np.array([value], np.float32))) == [found]


@given(usable_vectors, st.integers(0, 9))
def test_int8_is_right_to_one_level_of_its_group(vector: Vector, seed: int) -> None:
    found = decompressed(travelled("int8", vector, seed)).astype(np.float64)

    largest = float(np.abs(vector).max(initial=0))
    # A group of nothing but numbers near the smallest float32 becomes zero.
    assert (np.abs(found - vector) <= max(largest / 126.9, 4e-36)).all()


@settings(max_examples=20)
@given(sizes, st.integers(0, 9))
def test_int8_is_what_its_plain_reference_says(size: int, seed: int) -> None:
    found = travelled("int8", noise(size, seed))

    assert decompressed(found).tobytes() == int8_reference(found).tobytes()


def test_int8_is_right_on_average() -> None:
    vector = noise(3 * GROUP + 7)
    rounds = 400

    total = np.zeros(vector.size)
    for seed in range(rounds):
        total += decompressed(travelled("int8", vector, seed))

    level = np.repeat(
        [np.abs(part).max() / 127 for part in np.split(vector, [GROUP, 2 * GROUP, 3 * GROUP])], GROUP
    )
    # A level at most wide, the error of one rounding has a standard deviation of half a level at most.
    deviations = (total / rounds - vector) / (level[: vector.size] / 2 / rounds**0.5)
    assert np.abs(deviations).max() < 6
    assert abs(deviations.mean()) < 6 / vector.size**0.5


def test_int8_rounds_the_same_way_for_the_same_seed_and_another_for_another() -> None:
    vector = noise(5 * GROUP)

    first, again, other = (bytes(travelled("int8", vector, seed).payload) for seed in (1, 1, 2))

    assert first == again != other


@settings(max_examples=60)
@given(st.sampled_from(NAMES), sizes, st.sampled_from([1.0, 0.0, 0.3, 1 / 3, 1e-30]), st.integers(0, 9))
def test_adding_a_travelling_vector_is_adding_what_it_stands_for(
    codec: str, size: int, scale: float, seed: int
) -> None:
    vector, total = travelled(codec, noise(size, seed)), noise(size, seed + 100)
    expected = total.copy()
    add_scaled(expected, decompressed(vector), scale)

    vector.add_to(total, scale)

    # -0 and 0 are the same here: what topk leaves out is not added at all.
    assert np.array_equal(total, expected)


@given(st.sampled_from(NAMES), usable_vectors)
def test_no_element_is_larger_than_the_largest_magnitude(codec: str, vector: Vector) -> None:
    found = travelled(codec, vector)

    largest = float(np.abs(decompressed(found)).max(initial=0))
    assert largest <= found.magnitude_bound() <= largest * 1.02 + 4e-36


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("place", [0, 2 * GROUP, BLOCK_SIZE + 1])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_travel_so_that_admission_sees_them(codec: str, place: int, odd: float) -> None:
    vector = noise(BLOCK_SIZE + 2)
    vector[place] = odd

    found = travelled(codec, vector)

    assert not np.isfinite(found.magnitude_bound())
    assert not np.isfinite(decompressed(found)[place])


@pytest.mark.parametrize("codec", WHOLE)
def test_a_vector_that_lies_apart_in_memory_travels_too(codec: str) -> None:
    every_other = (np.arange(10, dtype=np.float32) - 5)[::2] * 127

    assert values_of(travelled(codec, every_other)) == pytest.approx([-635, -381, -127, 127, 381], abs=6)


@pytest.mark.parametrize("codec", NAMES)
def test_compressing_and_adding_leave_what_they_read_as_it_was(codec: str) -> None:
    vector = noise(GROUP + 1)
    before = vector.tobytes()

    found = travelled(codec, vector)
    sent = bytes(found.payload)
    found.add_to(np.zeros(vector.size, np.float32), 0.5)

    assert vector.tobytes() == before
    assert bytes(found.payload) == sent


@pytest.mark.parametrize("codec", NAMES)
def test_vectors_of_different_sizes_are_never_added(codec: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be added|must have one shape"):
        travelled(codec, noise(5)).add_to(np.zeros(1, np.float32), 1.0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "zip",
        "+zstd",
        "int8+zstd+zstd",
        "int8+lz4",
        "INT8",
        "topk:2",
        "topk:0",
        "topk:0.6",
        "topk:0.00001",
        "topk:.1",
    ],
)
def test_an_unknown_codec_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"must be one of float32, bfloat16, int8, topk, topk:SHARE \(0.0001 to 0.5\), each also .* not",
    ):
        require_codec(name)


def zstd_lies() -> Sequence[tuple[bytes, str]]:
    packed = zstandard.ZstdCompressor().compress(bytes(16))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16))
    return [
        (b"", "it is no zstd frame"),
        (packed[:-1], "it is no zstd frame"),
        (packed + b"x", "it is no zstd frame"),
        (b"x" + packed, "it is no zstd frame"),
        (unsized, "it announces 18446744073709551615 bytes, more than the 16"),
        (zstandard.ZstdCompressor().compress(bytes(17)), "it announces 17 bytes, more than the 16"),
        (zstandard.ZstdCompressor().compress(bytes(15)), "the vector takes 16 bytes, but has 15"),
    ]


@pytest.mark.parametrize(("packed", "says"), zstd_lies())
def test_what_zstd_announces_is_held_against_the_size_before_it_is_unpacked(packed: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_vector("float32+zstd", 4, memoryview(packed))


def test_a_scale_less_than_zero_is_refused() -> None:
    payload = bytearray(Int8Vector.of(noise(5), np.random.default_rng(0)).payload)
    payload[:4] = np.float32(-1).tobytes()

    with pytest.raises(ValueError, match="a scale of -1 is less than 0"):
        Int8Vector.read(5, memoryview(bytes(payload)))
