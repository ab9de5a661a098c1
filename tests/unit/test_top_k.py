"""The codec topk: the largest elements travel, exactly, and bytes that are no such vector are refused."""

import numpy as np
import pytest
from builders import a_vector, values_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fluffle.codecs.compressed import decompressed
from fluffle.codecs.top_k import SAMPLE, TopK, TopKVector
from fluffle.model import Vector

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.integers(0, 60).flatmap(lambda size: arrays(np.float32, size, elements=finite))
shares = st.sampled_from([0.0001, 0.01, 0.1, 0.5])


def travelled(vector: Vector, share: float, seed: int = 0) -> TopKVector:
    sent = TopK(share).of(vector, np.random.default_rng(seed))
    assert len(sent.payload) <= TopK(share).most_bytes(vector.size)
    return TopK(share).read(vector.size, sent.payload)


def reference(size: int, payload: bytes) -> Vector:
    """The codec in the plainest words: go on by each gap, and put the next value there."""
    count = int.from_bytes(payload[:4], "little")
    values = iter(np.frombuffer(payload[4 : 4 + 4 * count], "<f4"))
    whole, place = np.zeros(size, np.float32), 0
    for code in payload[4 + 4 * count :]:
        place += code
        if code != 255:
            whole[place] = next(values)
            place += 1
    return whole


@given(vectors, shares)
def test_the_largest_elements_travel_exactly_and_nothing_else(vector: Vector, share: float) -> None:
    found = decompressed(travelled(vector, share))

    count = TopK(share).most_entries(vector.size)
    sent, left_out = np.flatnonzero(found), np.flatnonzero(found == 0)
    assert len(sent) == min(count, np.count_nonzero(vector))
    assert np.array_equal(found[sent], vector[sent])
    if len(sent) and len(left_out):
        assert np.abs(vector[left_out]).max() <= np.abs(vector[sent]).min()


@settings(max_examples=25)
@given(st.integers(SAMPLE - 1, 3 * SAMPLE), shares, st.integers(0, 9), st.sampled_from([0.0, 0.9, 0.99999]))
@example(3 * SAMPLE, 0.0001, 0, 1.0)
def test_a_sampled_threshold_finds_the_largest_of_a_large_vector(
    size: int, share: float, seed: int, zeros: float
) -> None:
    random = np.random.default_rng(seed)
    vector = random.standard_normal(size).astype(np.float32)
    vector[random.random(size) < zeros] = 0

    found = travelled(vector, share, seed)

    count = min(TopK(share).most_entries(size), np.count_nonzero(vector))
    largest = np.sort(np.abs(vector))[::-1][:count]
    assert np.array_equal(np.sort(np.abs(found.values))[::-1], largest)
    assert np.array_equal(decompressed(found), reference(size, bytes(found.payload)))


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 100_000])
def test_a_gap_of_any_length_is_told(gap: int) -> None:
    vector = np.zeros(gap + 300, np.float32)
    vector[[gap, gap + 260]] = 2, -1

    found = travelled(vector, 0.01)

    assert np.array_equal(decompressed(found), vector)


def test_nan_and_infinity_are_the_largest_of_all() -> None:
    found = travelled(a_vector(1, np.nan, 5, -np.inf, 2), 0.4)

    assert np.flatnonzero(values_of(found)).tolist() == [1, 3]
    assert not np.isfinite(found.magnitude_bound())


def a_payload(count: int, values: int, gaps: bytes) -> memoryview:
    return memoryview(count.to_bytes(4, "little") + np.ones(values, "<f4").tobytes() + gaps)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (memoryview(b""), "0 values|takes|not"),
        (memoryview(b"\1\0"), "takes"),
        (a_payload(6, 6, bytes(6)), "it has 6 entries, and 0.5 of 10 are at most 5"),
        (a_payload(2**32 - 1, 1, b"\0"), "it has 4294967295 entries"),
        (a_payload(5, 1, b"\0"), "takes 29 bytes, but has 9"),
        (a_payload(2, 2, b"\0"), "it has 2 values, but 1 gaps that end"),
        (a_payload(1, 1, b"\0\0"), "it has 1 values, but 2 gaps that end"),
        (a_payload(1, 1, b"\0\xff"), "it has 1 values, but 1 gaps that end"),
        (a_payload(0, 0, b"\xff"), "it has 0 values, but 0 gaps that end"),
        (a_payload(1, 1, b"\x0a"), "its last entry is element 10 of 10"),
        (a_payload(2, 2, b"\x05\x04"), "its last entry is element 10 of 10"),
        (a_payload(1, 1, b"\xff" * 9 + b"\0"), "its last entry is element 2295 of 10"),
    ],
)
def test_bytes_that_are_no_such_vector_are_refused(payload: memoryview, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TopK(0.5).read(10, payload)


@settings(max_examples=300)
@given(st.integers(0, 600), st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_what_the_reference_says(size: int, noise: bytes) -> None:
    payload = memoryview((len(noise) // 5).to_bytes(4, "little") + noise)
    try:
        found = TopK(0.5).read(size, payload)
    except ValueError:
        return

    expected = reference(size, bytes(payload))
    assert decompressed(found).tobytes() == expected.tobytes()
    total = np.zeros(size, np.float32)
    with np.errstate(all="ignore"):
        found.add_to(total, 1.0)
    assert np.array_equal(total, expected, equal_nan=True)
