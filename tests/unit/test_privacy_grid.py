"""Sums in whole steps: an update is never longer than its clip, and no digit tells about the sum."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from fluffle.model import Vector
from fluffle.privacy.grid import MOST_STEPS, SLACK, Grid, Steps, add_rounded
from fluffle.privacy.noise import NoiseSequence
from fluffle.vector_math import BLOCK_SIZE

STDS = st.floats(-6, 6).map(lambda power: 10.0**power)


def norm_of(vector: Vector) -> float:
    return math.sqrt(float(np.sum(np.square(vector, dtype=np.float64))))


def add(grid: Grid, total: Steps, vector: Vector, weight: float = 1.0, *, norm: float | None = None) -> None:
    blocks = (vector[start : start + BLOCK_SIZE] for start in range(0, vector.size, BLOCK_SIZE))
    grid.add_clipped(total, blocks, norm_of(vector) if norm is None else norm, weight)


def length(steps: Steps) -> int:
    """The square of the length in steps, exactly."""
    return sum(step * step for step in steps.tolist())


@given(STDS, st.floats(0.01, 100.0), st.integers(1, 300), st.floats(-5, 5), st.integers(0, 2**32 - 1))
@example(std=1.0, multiplier=93.0, size=201, power=0.0, seed=221)
def test_an_update_in_whole_steps_is_never_longer_than_its_clip(
    std: float, multiplier: float, size: int, power: float, seed: int
) -> None:
    clip, random = std / multiplier, np.random.default_rng(seed)
    vector = (random.standard_normal(size) * clip * 10.0**power).astype(np.float32)
    grid, total = Grid.for_noise(std, clip, size), np.zeros(size, np.int64)
    weight = float(random.uniform(0.01, 1.0))

    # The norm may be a little off.
    add(grid, total, vector, weight, norm=norm_of(vector) * (1 - 2.0**-18))

    assert math.sqrt(length(total)) * grid.step <= clip
    # It is not much shorter either, and points in the same direction.
    short = vector.astype(np.float64) * weight * min(1.0, clip / max(norm_of(vector), 1e-300))
    assert np.abs(total * grid.step - short).max() <= grid.step + grid.rounding + clip * 2.0**-16


@given(
    st.lists(
        st.one_of(
            st.floats(-MOST_STEPS, MOST_STEPS, exclude_min=True, exclude_max=True),
            st.integers(-(2**52) + 2, 2**52 - 2).map(lambda halves: halves / 2),
            st.floats(-2.0, 2.0),
        ),
        min_size=1,
        max_size=50,
    ),
    st.integers(-(2**53), 2**53),
)
def test_numbers_are_added_up_as_the_nearest_whole_ones_and_ties_as_even_ones(
    numbers: list[float], before: int
) -> None:
    total = np.full(len(numbers), before, np.int64)

    add_rounded(total, np.array(numbers))

    # Python rounds exactly, and ties to even.
    assert total.tolist() == [before + round(number) for number in numbers]


@given(STDS, st.floats(0.01, 100.0), st.integers(1, 3000), st.floats(-5, 5), st.integers(0, 2**32 - 1))
def test_an_update_is_rounded_element_by_element_as_in_exact_arithmetic(
    std: float, multiplier: float, size: int, power: float, seed: int
) -> None:
    clip, random = std / multiplier, np.random.default_rng(seed)
    vector = (random.standard_normal(size) * clip * 10.0**power).astype(np.float32)
    grid, weight = Grid.for_noise(std, clip, size), float(random.uniform(0.01, 1.0))
    total = random.integers(-(2**40), 2**40, size)
    before = total.tolist()

    add(grid, total, vector, weight)

    norm = norm_of(vector)
    room = grid.clip * (1 - SLACK) - grid.rounding
    scale = weight * min(1.0, room / norm if norm else 1.0) / grid.step
    assert total.tolist() == [
        one + round(float(element) * scale) for one, element in zip(before, vector, strict=True)
    ]


@pytest.mark.parametrize("size", [1, 3, BLOCK_SIZE + 5])
def test_the_longest_vectors_of_a_large_model_stay_within_the_clip(size: int) -> None:
    grid, total = Grid.for_noise(50.0, 1.0, size), np.zeros(size, np.int64)
    # Just above half a step, each element is rounded away from 0.
    element = np.float32((1.0 - grid.rounding) / math.sqrt(size))

    add(grid, total, np.full(size, element, np.float32) * np.float32(3))

    assert length(total) <= int(1.0 / grid.step) ** 2


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6, unique=True))
def test_sums_have_the_same_bits_in_any_order_and_differ_by_one_update_alone(seeds: list[int]) -> None:
    grid = Grid.for_noise(0.7, 0.5, 50)
    vectors = [np.random.default_rng(seed).standard_normal(50).astype(np.float32) for seed in seeds]

    def summed(some: list[Vector]) -> Steps:
        total = np.zeros(50, np.int64)
        for vector in some:
            add(grid, total, vector)
        return total

    assert summed(vectors).tolist() == summed(vectors[::-1]).tolist()
    assert (summed(vectors) - summed(vectors[1:])).tolist() == summed(vectors[:1]).tolist()


def test_a_sum_is_read_as_floats_again() -> None:
    size = BLOCK_SIZE + 9
    grid, total = Grid.for_noise(2.0, 1e6, size), np.zeros(size, np.int64)
    vectors = [np.random.default_rng(seed).standard_normal(size).astype(np.float32) for seed in (1, 2)]

    for vector in vectors:
        add(grid, total, vector)

    mean = (vectors[0].astype(np.float64) + vectors[1]) / 2
    np.testing.assert_allclose(grid.decode(total, 2.0), mean, atol=grid.step + 1e-6)


@given(STDS)
def test_a_step_is_a_power_of_two_far_below_the_noise(std: float) -> None:
    grid = Grid.for_noise(std, std, 1)

    assert math.frexp(grid.step)[0] == 0.5
    assert 2**25 <= std / grid.step < 2**26


@settings(max_examples=5)
@given(st.integers(0, 255))
def test_the_last_digits_of_what_is_shown_say_nothing_about_the_sum(byte: int) -> None:
    """The attack of Mironov (2012): which floats can come out depends on the sum without noise."""
    size = 40_000
    last_digits = []
    for elements in (0.0, 1 / 3):
        grid, total = Grid.for_noise(1.0, 100.0, size), np.zeros(size, np.int64)
        add(grid, total, np.full(size, elements, np.float32))
        NoiseSequence((1.0,), 1.0 / grid.step, size, kept=0).add_next(bytes([byte] * 16), total)
        last_digits.append(np.bincount(total % 64, minlength=64))

    for counts in last_digits:
        assert stats.chisquare(counts).pvalue > 1e-6


def test_a_clip_that_rounding_would_take_away_is_refused() -> None:
    with pytest.raises(ValueError, match="is lost in the noise of a model of 100000000 parameters"):
        Grid.for_noise(1000.0, 0.1, 100_000_000)


def test_noise_that_is_too_fine_for_float64_is_refused() -> None:
    Grid.for_noise(1.0, 2.0**25, 1)
    with pytest.raises(ValueError, match="the noise is lost in the clip"):
        Grid.for_noise(1.0, 2.0**26, 1)


@pytest.mark.parametrize(("std", "clip"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_noise_and_clips_that_are_none_are_refused(std: float, clip: float) -> None:
    with pytest.raises(ValueError, match="must be numbers above 0"):
        Grid.for_noise(std, clip, 1)


def test_updates_that_cannot_be_clipped_are_refused() -> None:
    grid, total = Grid.for_noise(1.0, 1.0, 3), np.zeros(3, np.int64)
    one = np.ones(3, np.float32)

    with pytest.raises(ValueError, match="norm is nan"):
        grid.add_clipped(total, [one], math.nan)
    with pytest.raises(ValueError, match="norm is inf"):
        grid.add_clipped(total, [one], math.inf)
    for weight in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="weight must be above 0 and at most 1"):
            grid.add_clipped(total, [one], 1.0, weight)
    with pytest.raises(ValueError, match="2 elements cannot be added to 3"):
        grid.add_clipped(total, [one[:2]], 1.0)


def test_a_larger_model_and_more_noise_leave_less_of_the_clip() -> None:
    lost = [Grid.for_noise(std, 1.0, 1_000_000).rounding for std in (1.0, 4.0, 16.0)]

    assert all(later == 4 * one for one, later in pairwise(lost))
    assert lost[0] < 2e-5
