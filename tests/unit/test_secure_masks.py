"""Secure aggregation's arithmetic: what is masked, added up and opened is the sum, to the last bit."""

import math
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fluffle.secure.committee import Committee
from fluffle.secure.fixed_point import FixedPoint, greatest_factor
from fluffle.secure.masks import Masked, add_masks, mask_key
from fluffle.secure.modulus import BITS, Modulus, Residues, add_multiple
from fluffle.update import UpdateId
from fluffle.vector_math import BLOCK_SIZE

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
MASKED = Masked("digits", 1, UpdateId("hospital-1", "a0b1", 7), 2, 31)
MODULI = [Modulus(bits) for bits in BITS]


def residues(values: list[int]) -> Residues:
    return np.array(values, np.int64).astype(np.uint32)


@given(st.sampled_from(MODULI), st.lists(st.integers(-(2**40), 2**40), max_size=9))
def test_packed_numbers_come_back_modulo_the_power_of_two(modulus: Modulus, values: list[int]) -> None:
    packed = modulus.pack(residues(values))

    assert len(packed) == modulus.bytes_of(len(values)) == len(values) * modulus.bits // 8
    unpacked = modulus.unpack(memoryview(packed), len(values))
    assert unpacked.tolist() == [value % 2**modulus.bits for value in values]


@given(st.sampled_from(MODULI), st.data())
def test_numbers_that_fit_are_read_with_their_sign(modulus: Modulus, data: st.DataObject) -> None:
    half = 2 ** (modulus.bits - 1)
    values = data.draw(st.lists(st.integers(-half, half - 1), max_size=9))

    through_the_wire = modulus.unpack(memoryview(modulus.pack(residues(values))), len(values))

    assert modulus.signed(through_the_wire).tolist() == values
    assert modulus.signed(residues(values)).tolist() == values


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1])
def test_a_multiple_is_added_to_each_element(size: int) -> None:
    total, added = np.arange(size, dtype=np.uint32), np.full(size, 2**31 + 5, np.uint32)

    add_multiple(total, added, 3)

    expected = (np.arange(size, dtype=object) + 3 * (2**31 + 5)) % 2**32
    assert total.tolist() == expected.tolist()


@given(st.sampled_from(MODULI), st.integers(-64, 64), st.data())
def test_packed_numbers_are_added_up_as_the_numbers_themselves(
    modulus: Modulus, factor: int, data: st.DataObject
) -> None:
    size = data.draw(st.sampled_from([0, 1, 2, 5, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    total, added = random.integers(0, 2**32, (2, size), np.uint32)
    expected = total.astype(object) + factor * added.astype(object)

    modulus.add_packed(total, memoryview(modulus.pack(added)), factor)

    assert [int(each) % 2**modulus.bits for each in total] == (expected % 2**modulus.bits).tolist()


@pytest.mark.parametrize("bits", [0, 8, 31, 64])
def test_other_moduli_are_refused_with_the_possible_ones(bits: int) -> None:
    with pytest.raises(ValueError, match=f"must be one of 16, 24, 32 bits, not {bits}"):
        Modulus(bits)


def test_bytes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 numbers modulo 2\*\*24 take 9 bytes, not 8"):
        Modulus(24).unpack(memoryview(bytes(8)), 3)
    with pytest.raises(ValueError, match=r"3 numbers modulo 2\*\*24 take 9 bytes, not 12"):
        Modulus(24).add_packed(np.zeros(3, np.uint32), memoryview(bytes(12)))
    with pytest.raises(ValueError, match="2 numbers cannot be added to 3"):
        add_multiple(np.zeros(3, np.uint32), np.zeros(2, np.uint32))


@settings(max_examples=25)
@given(
    st.sampled_from([(modulus, bits) for modulus in MODULI for bits in (8, 13, 16, 20)]),
    st.integers(1, 6),
    st.sampled_from([(2, 1), (3, 1), (3, 2), (5, 2)]),
    st.integers(0, 2**32 - 1),
)
def test_a_masked_weighted_sum_opens_to_that_without_masks(
    numbers: tuple[Modulus, int], count: int, committee: tuple[int, int], seed: int
) -> None:
    (modulus, bits), (helpers, colluding), random = numbers, committee, np.random.default_rng(seed)
    point = FixedPoint(0.5, bits, by_norm=False)
    most = min(greatest_factor(modulus, point, count), 2**20)
    factors = random.integers(1, most, size=count, endpoint=True).tolist() if most else []
    vectors = [random.uniform(-0.6, 0.6, 1000).astype(np.float32) for _ in factors]
    groups = Committee(tuple(f"helper-{n}" for n in range(helpers)), colluding).groups
    keys = [[random.bytes(16) for _ in groups] for _ in factors]

    total, plain = np.zeros(1000, np.uint32), np.zeros(1000, object)
    for factor, vector, own in zip(factors, vectors, keys, strict=True):
        encoded = point.encode(vector, random)
        plain += factor * encoded.view(np.int32).astype(object)
        add_masks(encoded, own)
        add_multiple(total, modulus.unpack(memoryview(modulus.pack(encoded)), 1000), factor)
    for group in range(len(groups)):
        # What one helper of a group answers.
        opening = np.zeros(1000, np.uint32)
        for factor, own in zip(factors, keys, strict=True):
            add_masks(opening, [own[group]], factor)
        opening = modulus.unpack(memoryview(modulus.pack(opening)), 1000)
        add_multiple(total, opening, -1)

    assert modulus.signed(total).tolist() == plain.tolist()


@given(st.sampled_from(MODULI), st.integers(8, 20), st.integers(1, 100))
def test_the_greatest_factor_just_leaves_room(modulus: Modulus, bits: int, count: int) -> None:
    point = FixedPoint(1.0, bits)

    factor = greatest_factor(modulus, point, count)

    half = 2 ** (modulus.bits - 1)
    assert count * factor * point.levels < half <= count * (factor + 1) * point.levels


@given(st.integers(8, 20), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_rounding_is_right_on_average_and_never_by_more_than_one_level(
    bits: int, clip: float, seed: int
) -> None:
    random, point = np.random.default_rng(seed), FixedPoint(clip, bits, by_norm=False)
    vector = (random.uniform(-1, 1, 500) * clip).astype(np.float32)

    drawn = [point.decode(point.encode(vector, random).view(np.int32), 1.0) for _ in range(30)]

    step = clip / point.levels
    errors = np.array(drawn, np.float64) - vector
    assert np.abs(errors).max() <= step + clip * np.finfo(np.float32).eps
    # 15,000 draws of at most one step.
    assert abs(errors.mean()) <= 5 * step / math.sqrt(errors.size)


def test_what_is_longer_than_the_clip_is_shortened_to_it_or_clipped_element_by_element() -> None:
    random, vector = np.random.default_rng(0), np.array([3.0, -4.0, 0.0], np.float32)

    by_norm = FixedPoint(1.0, 20).encode(vector, random).view(np.int32)
    by_element = FixedPoint(1.0, 20, by_norm=False).encode(vector, random).view(np.int32)
    short = FixedPoint(10.0, 20).encode(vector, random).view(np.int32)

    levels = 2**19 - 1
    assert np.abs(by_norm - np.array([0.6, -0.8, 0.0]) * levels).max() <= 1
    assert by_element.tolist() == [levels, -levels, 0]
    assert np.abs(short - np.array([0.3, -0.4, 0.0]) * levels).max() <= 1
    assert FixedPoint(1.0, 8).encode(np.zeros(3, np.float32), random).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("clip", "bits"), [(0.0, 16), (-1.0, 16), (math.nan, 16), (1.0, 7), (1.0, 21)])
def test_numbers_that_cannot_be_are_refused(clip: float, bits: int) -> None:
    with pytest.raises(ValueError, match="not"):
        FixedPoint(clip, bits)


def test_a_worker_and_a_helper_agree_on_a_key_that_depends_on_all_that_is_masked() -> None:
    key = mask_key(KEY, OTHER.public_key(), MASKED, 0)
    others = [
        Masked("digits-2", 1, MASKED.id, 2, 31),
        Masked("digits", 2, MASKED.id, 2, 31),
        Masked("digits", 1, UpdateId("hospital-1a", "0b1", 7), 2, 31),
        Masked("digits", 1, UpdateId("hospital-1", "a0b1", 8), 2, 31),
        Masked("digits", 1, MASKED.id, 3, 31),
        Masked("digits", 1, MASKED.id, 2, 32),
    ]

    assert key == mask_key(OTHER, KEY.public_key(), MASKED, 0)
    found = {key, mask_key(KEY, OTHER.public_key(), MASKED, 1)}
    found |= {mask_key(KEY, OTHER.public_key(), other, 0) for other in others}
    assert len(found) == 2 + len(others)


def test_a_public_key_that_gives_a_known_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="shared key"):
        mask_key(KEY, X25519PublicKey.from_public_bytes(bytes(32)), MASKED, 0)


def test_the_mask_is_the_key_stream_of_aes_in_counter_mode() -> None:
    # NIST SP 800-38A, F.5.1 uses another counter block; this one is AES-128 of zeros under a key of zeros.
    total = np.zeros(4, np.uint32)

    add_masks(total, [bytes(16)])

    assert total.astype("<u4").tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


def test_of_each_four_bytes_of_the_key_stream_a_mask_has_the_low_ones() -> None:
    total = np.zeros(4, np.uint32)

    add_masks(total, [bytes(16)])

    packed = {modulus.bits: modulus.pack(total).hex(" ", modulus.bits // 8) for modulus in MODULI}
    assert packed[32] == "66e94bd4 ef8a2c3b 884cfa59 ca342b2e"
    assert packed[24] == "66e94b ef8a2c 884cfa ca342b"
    assert packed[16] == "66e9 ef8a 884c ca34"


@pytest.mark.parametrize("modulus", MODULI, ids=str)
@pytest.mark.parametrize("size", [1, BLOCK_SIZE, 2 * BLOCK_SIZE + 17])
def test_masks_are_taken_off_by_the_same_keys(modulus: Modulus, size: int) -> None:
    values = np.arange(size, dtype=np.uint32) % 2**16
    total, keys = values.copy(), [b"k" * 16, b"l" * 16]

    add_masks(total, keys, 5)
    masked = total.copy()
    add_masks(total, keys, -5)

    assert modulus.pack(total) == modulus.pack(values)
    assert size == 1 or modulus.pack(masked) != modulus.pack(values)


@pytest.mark.parametrize("modulus", MODULI, ids=str)
def test_masked_bytes_are_uniform_whatever_is_masked(modulus: Modulus) -> None:
    masked = np.full(500_000, 3, np.uint32)

    add_masks(masked, [mask_key(KEY, OTHER.public_key(), MASKED, 0)])

    counts = np.bincount(np.frombuffer(modulus.pack(masked), np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    # Not by numbers alone: 16 neighbouring bits too.
    pairs = np.bincount(np.frombuffer(modulus.pack(masked)[: 2 * 400_000], "<u2"), minlength=2**16)
    assert stats.chisquare(pairs).pvalue > 1e-4


@given(st.integers(2, 7), st.data())
def test_so_many_more_helpers_than_may_collude_open_and_these_alone_do_not(
    count: int, data: st.DataObject
) -> None:
    colluding = data.draw(st.integers(1, count - 1))
    helpers = tuple(f"helper-{number}" for number in range(count))
    committee = Committee(helpers, colluding)

    assert len(committee.groups) == math.comb(count, colluding)
    for size in range(count + 1):
        for at_work in combinations(helpers, size):
            assert committee.can_open(at_work) == (size >= committee.fewest_to_open)
    # Those who collude are in no group of the others.
    for bad in combinations(helpers, colluding):
        assert any(not set(group) & set(bad) for group in committee.groups)


@pytest.mark.parametrize(
    ("helpers", "colluding", "says"),
    [
        (("a",), 1, "must be 2 to 7 helpers, not 1"),
        (("a", "a"), 1, "each helper needs a name of its own, not a, a"),
        (("a", "b", "c"), 0, "of 3 helpers 1 to 2 may collude, not 0"),
        (("a", "b", "c"), 3, "of 3 helpers 1 to 2 may collude, not 3"),
        (tuple("abcdefgh"), 1, "must be 2 to 7 helpers, not 8"),
    ],
)
def test_committees_that_protect_nothing_are_refused(
    helpers: tuple[str, ...], colluding: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Committee(helpers, colluding)
