"""Whole numbers of statistics and deltas: their sums are right, and stay in the modulus."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.secure.fixed_point import FixedPoint, greatest_factor
from fluffle.secure.limbs import FRACTION_BITS, LARGEST, decode_limbs, encode_limbs
from fluffle.secure.modulus import BITS, Modulus
from fluffle.secure.weights import MOST_FACTOR


@given(st.integers(8, 20), st.data())
def test_sums_of_statistics_are_those_of_their_values(bits: int, data: st.DataObject) -> None:
    count, size = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 5))
    floats = st.floats(-LARGEST, LARGEST, width=32)
    values = [
        np.array(data.draw(st.lists(floats, min_size=size, max_size=size)), np.float32) for _ in range(count)
    ]
    factors = data.draw(st.lists(st.integers(1, MOST_FACTOR), min_size=count, max_size=count))

    total = sum(
        factor * encode_limbs(each, bits).view(np.int32) for factor, each in zip(factors, values, strict=True)
    )

    assert isinstance(total, np.ndarray)
    expected = sum(factor * each.astype(np.float64) for factor, each in zip(factors, values, strict=True))
    most = max(float(np.abs(each).max()) for each in values) * sum(factors)
    allowed = sum(factors) * 2.0 ** -(FRACTION_BITS + 1) + most * 2.0**-48
    assert np.abs(decode_limbs(total, bits) - expected).max() <= allowed


@settings(max_examples=50)
@given(st.sampled_from(BITS), st.integers(8, 20), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_no_sum_leaves_the_modulus_with_factors_that_are_allowed(
    modulus_bits: int, bits: int, count: int, seed: int
) -> None:
    modulus, point, random = (
        Modulus(modulus_bits),
        FixedPoint(1.0, bits, by_norm=False),
        np.random.default_rng(seed),
    )
    factor = min(MOST_FACTOR, greatest_factor(modulus, point, count))
    if factor == 0:
        return
    # The largest numbers that there are, in both directions, and statistics of all sizes.
    delta = np.array([1e9, -1e9, 1.0, -1.0], np.float32)
    sizes = np.exp2(random.uniform(-30, 40, 40)) * random.choice([-1, 1], 40)
    statistics = np.array([*sizes, LARGEST, -LARGEST, np.float32(math.pi)], np.float32)
    numbers = np.concatenate([point.encode(delta, random), encode_limbs(statistics, bits)])

    total = np.zeros(numbers.size, np.uint32)
    for _ in range(count):
        total += numbers * np.uint32(factor)

    expected = count * factor * numbers.view(np.int32).astype(np.int64)
    assert (
        modulus.signed(modulus.unpack(memoryview(modulus.pack(total)), total.size)).tolist()
        == expected.tolist()
    )
