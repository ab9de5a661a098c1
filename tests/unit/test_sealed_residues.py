"""Ciphertexts as numbers: sums are right modulo the prime, and no other bytes are taken for numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.sealed.parameters import DEGREE, PRIME, RESIDUE_BITS, SLOTS, bytes_of, ciphertexts_of
from fluffle.sealed.residues import (
    MOST_WEIGHT,
    Residues,
    add_packed,
    add_weighted,
    negated,
    pack,
    require_residues,
    sum_of_packed,
    unpack,
    zeros,
)

# A block has eight ciphertexts.
SIZES = st.sampled_from([1, SLOTS, SLOTS + 1, 8 * SLOTS, 9 * SLOTS])
SEEDS = st.integers(0, 2**32 - 1)
EXTREMES = [0, 1, PRIME - 1, PRIME - 2, 1 << 53, (1 << 53) - 1]


def some_residues(size: int, seed: int) -> Residues:
    """Random numbers below the prime, among them the smallest and largest ones."""
    random = np.random.default_rng(seed)
    found = random.integers(0, PRIME, zeros(size).shape, np.uint64)
    found.reshape(-1)[random.integers(0, found.size, 32)] = random.choice(np.array(EXTREMES, np.uint64), 32)
    return found


def packed_by_python(residues: Residues) -> bytes:
    """All numbers as the digits of one large integer, lowest first: the definition of the format."""
    numbers, packed = as_lists(residues), bytearray()
    # Four take 27 whole bytes, and Python's integers grow slow.
    for first in range(0, len(numbers), 4):
        digits = 0
        for number in reversed(numbers[first : first + 4]):
            digits = digits << RESIDUE_BITS | number
        packed += digits.to_bytes(27, "little")
    return bytes(packed)


def as_lists(residues: Residues) -> list[int]:
    found: list[int] = residues.reshape(-1).tolist()
    return found


@given(SEEDS)
@settings(max_examples=5)
def test_numbers_are_packed_as_the_digits_of_a_large_integer(seed: int) -> None:
    residues = some_residues(1, seed)

    packed = pack(residues)

    assert packed == packed_by_python(residues)
    assert np.array_equal(unpack(packed, 1), residues)


@given(SIZES, SEEDS)
@settings(max_examples=20)
def test_what_was_packed_is_unpacked(size: int, seed: int) -> None:
    residues = some_residues(size, seed)

    packed = pack(residues)

    assert len(packed) == bytes_of(size) == ciphertexts_of(size) * 2 * DEGREE * 54 // 8
    assert np.array_equal(unpack(memoryview(packed), size), residues)
    require_residues(packed, size)


@given(st.lists(st.tuples(SEEDS, st.integers(1, MOST_WEIGHT)), min_size=1, max_size=4), SIZES)
@settings(max_examples=8)
def test_weighted_sums_are_those_of_pythons_integers(updates: list[tuple[int, int]], size: int) -> None:
    total, packed_total = zeros(size), zeros(size)
    expected = [0] * total.size

    for seed, weight in updates:
        residues = some_residues(size, seed)
        add_weighted(total, residues, weight)
        add_packed(packed_total, pack(residues), size, weight)
        expected = [(a + weight * b) % PRIME for a, b in zip(expected, as_lists(residues), strict=True)]

    assert as_lists(total) == expected
    assert np.array_equal(packed_total, total)


@given(SIZES, SEEDS)
@settings(max_examples=5)
def test_a_packed_sum_grows_block_by_block(size: int, seed: int) -> None:
    before, more = some_residues(size, seed), some_residues(size, seed + 1)

    after = sum_of_packed(pack(before), size, more)

    expected = [(a + b) % PRIME for a, b in zip(as_lists(before), as_lists(more), strict=True)]
    assert as_lists(unpack(after, size)) == expected


def test_a_number_and_what_negates_it_come_to_zero() -> None:
    residues = some_residues(3 * SLOTS, 1)
    total = residues.copy()

    add_weighted(total, negated(residues))

    assert not total.any()


@pytest.mark.parametrize("wrong", [PRIME, PRIME + 1, (1 << 54) - 1])
def test_a_number_that_is_not_below_the_prime_is_refused(wrong: int) -> None:
    residues = some_residues(9 * SLOTS, 3)
    residues[-1, 1, -1] = wrong
    payload = packed_by_python(residues)

    for read in (unpack, require_residues):
        with pytest.raises(ValueError, match=f"has the number {wrong}, and all are below"):
            read(payload, 9 * SLOTS)


@pytest.mark.parametrize("length", [0, 1, bytes_of(SLOTS) - 1, bytes_of(SLOTS) + 1, 2 * bytes_of(SLOTS)])
def test_bytes_of_another_length_are_refused_with_the_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"take {bytes_of(SLOTS)} bytes, not {length}"):
        unpack(bytes(length), SLOTS)


@pytest.mark.parametrize("weight", [0, -1, MOST_WEIGHT + 1])
def test_a_weight_that_could_overflow_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match="a weight is from 1 to 512"):
        add_weighted(zeros(1), zeros(1), weight)


def test_sums_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 ciphertexts cannot be added to 1"):
        add_weighted(zeros(1), zeros(SLOTS + 1))


def test_the_greatest_weight_never_leaves_64_bits() -> None:
    assert PRIME - 1 + MOST_WEIGHT * (PRIME - 1) < 2**64
    assert PRIME < 2**54
    assert PRIME % (2 * DEGREE) == 1
