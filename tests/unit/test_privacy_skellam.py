"""Noise in shares: its bound against exact divergences, and its shares against their distribution."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from federation import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from fluffle.privacy.gaussian import epsilon_of
from fluffle.privacy.skellam import (
    MOST_VARIANCE,
    SkellamNoise,
    encode_within,
    renyi_divergence,
    rounded_norm,
)
from fluffle.secure.fixed_point import FixedPoint
from fluffle.secure.modulus import Modulus, add_multiple


def exact_divergence(order: int, shift: int, variance: float) -> float:
    """The Renyi divergence of Skellam noise and the same, shifted, summed up over all outcomes."""
    reach = int(60 + 40 * math.sqrt(variance) + 30 * shift)
    x = np.arange(-reach, reach + 1)
    # The probability of x is e^-variance times the modified Bessel function of order |x|.
    one, other = (special.ive(np.abs(x - by), variance) for by in (0, shift))
    known = (one > 0) & (other > 0)
    logarithms = order * np.log(one[known]) + (1 - order) * np.log(other[known])
    return float(special.logsumexp(logarithms) / (order - 1))


@settings(max_examples=60)
@given(st.integers(2, 30), st.integers(1, 30), st.floats(-1, 3).map(lambda power: 10.0**power))
def test_the_divergence_is_never_more_than_its_bound(order: int, shift: int, variance: float) -> None:
    exact = exact_divergence(order, shift, variance)

    assert exact <= renyi_divergence(order, shift, shift, variance) * (1 + 1e-9)


def test_the_bound_is_close_where_there_is_much_noise() -> None:
    exact = exact_divergence(5, 10, 1000.0)

    assert renyi_divergence(5, 10, 10, 1000.0) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("multiplier", "updates", "delta", "epsilon"),
    [
        (1.0, 1, 1e-5, 4.752728),
        (2.0, 8, 1e-5, 7.087862),
        (0.6, 1, 1e-6, 9.410946),
        (5.0, 100, 1e-8, 13.390447),
        (10.0, 20, 1e-10, 2.882279),
    ],
)
def test_dp_accounting_makes_the_same_epsilon_of_the_divergences_of_fine_noise(
    multiplier: float, updates: int, delta: float, epsilon: float
) -> None:
    """Skellam noise of many steps is almost Gaussian, for which dp-accounting 0.6.0 says this.

    It cannot be installed here, since it needs an attrs below 24.

    a = RdpAccountant(orders=range(2, 4096))
    a.compose(GaussianDpEvent(multiplier), updates)
    a.get_epsilon(delta)
    """
    noise = SkellamNoise(clip=1.0, l2=1e7, l1=1e7, honest=4, share=(multiplier * 1e7) ** 2 / 4)

    assert noise.epsilon_after(updates, delta) == pytest.approx(epsilon, abs=1e-4)
    # The exact epsilon of Gaussian noise is up to a tenth smaller.
    gaussian = epsilon_of(math.sqrt(updates) / multiplier, delta)
    assert gaussian < noise.epsilon_after(updates, delta) < 1.1 * gaussian


OF_DP_ACCOUNTING = json.loads((ROOT / "tests/reference/dp_accounting_epsilons.json").read_text())


@pytest.mark.parametrize("row", OF_DP_ACCOUNTING)
def test_dp_accounting_makes_the_same_epsilon_of_the_divergences_of_skellam_noise(
    row: dict[str, float],
) -> None:
    noise = SkellamNoise(clip=1.0, l2=row["l2"], l1=row["l1"], honest=1, share=row["variance"])

    assert noise.epsilon_after(int(row["updates"]), row["delta"]) == pytest.approx(row["epsilon"], rel=1e-4)


@settings(max_examples=40)
@given(
    st.floats(0.1, 20.0),
    st.integers(1, 50),
    st.integers(1, 10_000_000),
    st.integers(8, 11),
    st.integers(1, 50),
)
def test_noise_keeps_a_promise_and_is_not_more_than_needed(
    epsilon: float, updates: int, size: int, bits: int, honest: int
) -> None:
    clip = 2.0 ** (bits - 1) - 1

    noise = SkellamNoise.keeping(
        epsilon=epsilon, delta=1e-6, updates=updates, clip=clip, size=size, honest=honest
    )

    assert noise.epsilon_after(updates, 1e-6) <= epsilon < noise.epsilon_after(updates + 1, 1e-6)
    less = SkellamNoise(clip=1.0, l2=noise.l2, l1=noise.l1, honest=honest, share=noise.share * 0.998)
    assert less.epsilon_after(updates, 1e-6) > epsilon
    assert noise.epsilon_after(0, 1e-6) == 0.0
    assert noise.variance == pytest.approx(noise.share * honest)
    assert noise.l2 == rounded_norm(clip, size)
    assert noise.l1 <= math.sqrt(size) * noise.l2


def test_rounding_makes_a_vector_longer_when_there_are_many_elements_and_few_levels() -> None:
    assert rounded_norm(32767.0, 1_000_000) == pytest.approx(32767.0, rel=0.0002)
    assert rounded_norm(127.0, 1_000_000) == pytest.approx(518.0, rel=0.01)
    assert rounded_norm(100.0, 1) == pytest.approx(100.5, abs=0.01)


@settings(max_examples=40)
@given(st.integers(1, 2000), st.sampled_from([8, 12, 16, 20]), st.integers(0, 2**32 - 1))
def test_whole_numbers_keep_to_their_norm_in_every_case(size: int, bits: int, seed: int) -> None:
    random, point = np.random.default_rng(seed), FixedPoint(0.5, bits)
    vector = random.standard_normal(size).astype(np.float32)
    scale = point.levels / max(0.5, float(np.linalg.norm(vector)))
    l2 = rounded_norm(point.levels, size)

    numbers = encode_within(point, vector, l2, random).view(np.int32)

    assert sum(number * number for number in numbers.tolist()) <= l2 * l2
    assert np.abs(numbers).sum() <= l2 * min(math.sqrt(size), l2)
    assert np.abs(numbers - vector * scale).max() <= 1.01


def test_rounding_is_tried_again_until_the_norm_fits() -> None:
    # Half of the time each element becomes 1: seldom are all of them 0.
    point, vector = FixedPoint(127.0, 8), np.full(3, 0.5, np.float32)
    random = np.random.default_rng(1)

    lengths = [int(encode_within(point, vector, 1.0, random).sum()) for _ in range(200)]

    assert set(lengths) == {0, 1}


@pytest.mark.parametrize("variance", [0.8, 30.0, 40_000.0])
def test_shares_together_are_skellam_noise_of_their_variances_sum(variance: float) -> None:
    noise = SkellamNoise(clip=1.0, l2=1.0, l1=1.0, honest=5, share=variance / 5)
    random = np.random.default_rng(7)
    total = np.zeros(200_000, np.uint32)

    for _ in range(5):
        noise.add_share(total, random)

    found = total.view(np.int32)
    edges = np.unique(stats.skellam.ppf(np.linspace(0.02, 0.98, 25), variance / 2, variance / 2))
    expected = np.diff(stats.skellam.cdf(edges, variance / 2, variance / 2), prepend=0.0, append=1.0)
    counts = np.bincount(np.searchsorted(edges, found), minlength=edges.size + 1)
    assert stats.chisquare(counts, expected * found.size).pvalue > 1e-4
    assert np.abs(found).max() <= noise.farthest(5, found.size)


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_shares_wrap_as_masked_sums_do_and_are_read_with_their_sign(bits: int) -> None:
    modulus, noise = Modulus(bits), SkellamNoise(clip=1.0, l2=1.0, l1=1.0, honest=3, share=1e6)
    numbers, plain = np.full(1000, 2**32 - 700, np.uint32), np.full(1000, -700)
    total = np.zeros(1000, np.uint32)
    for seed in range(3):
        masked, drawn = numbers.copy(), np.zeros(1000, np.uint32)
        noise.add_share(masked, np.random.default_rng(seed))
        noise.add_share(drawn, np.random.default_rng(seed))
        plain = plain + drawn.view(np.int32)
        add_multiple(total, modulus.unpack(memoryview(modulus.pack(masked)), 1000))

    assert noise.farthest(3, 1000) < 2**15
    assert modulus.signed(total).tolist() == (plain - 1400).tolist()


def test_the_farthest_noise_is_not_much_further_than_one_sees() -> None:
    noise = SkellamNoise(clip=1.0, l2=1.0, l1=1.0, honest=1, share=1e4)

    # 2**-40 for any of a million is 8.6 standard deviations of a normal number.
    assert 850 < noise.farthest(1, 1_000_000) < 1000
    assert noise.farthest(4, 1_000_000) == pytest.approx(2 * noise.farthest(1, 1_000_000), rel=0.02)


def test_the_largest_share_that_is_drawn_has_the_right_variance() -> None:
    noise = SkellamNoise(clip=1.0, l2=1.0, l1=1.0, honest=1, share=MOST_VARIANCE)
    drawn = np.zeros(100_000, np.uint32)

    noise.add_share(drawn, np.random.default_rng(3))

    scaled = drawn.view(np.int32) / math.sqrt(MOST_VARIANCE)
    assert stats.kstest(scaled, "norm").pvalue > 1e-4


def make(
    *, epsilon: float = 8.0, delta: float = 1e-5, updates: int = 4, clip: float = 1000.0, honest: int = 3
) -> SkellamNoise:
    return SkellamNoise.keeping(
        epsilon=epsilon, delta=delta, updates=updates, clip=clip, size=10, honest=honest
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: make(epsilon=0.0), "needs epsilon above 0"),
        (lambda: make(delta=1.0), r"delta in \(0, 1\)"),
        (lambda: make(updates=0), "and 1 update, not"),
        (lambda: make(honest=0), "at least 1 worker of each sum must be honest, not 0"),
        (lambda: make(epsilon=1e-9), "cannot be drawn exactly: use fewer bits, or a larger epsilon"),
        (lambda: make(clip=2.0**30), "cannot be drawn exactly"),
    ],
)
def test_noise_that_cannot_be_is_refused(wrong: Callable[[], SkellamNoise], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()
