"""Correlated noise against explicit matrices and all ways in which a worker can take part."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter

from fluffle.privacy.correlated import (
    MOST_BANDS,
    best_bands,
    coefficients,
    noise_after,
    noise_against_plain,
    sensitivity,
    summed_noise,
)

Matrix = NDArray[np.float64]
# All ways to take part in the first 12 versions of a run.
PATTERNS: Matrix = np.array(list(product([0.0, 1.0], repeat=12)))


def toeplitz(column: Matrix, columns: int) -> Matrix:
    """A lower triangular matrix whose diagonals are constant."""
    found = np.zeros((column.size, columns))
    for index in range(columns):
        found[index:, index] = column[: column.size - index]
    return found


def noise_matrix(steps: int, bands: int) -> Matrix:
    """The matrix D that makes correlated noise of independent noise."""
    c = coefficients(bands)
    return toeplitz(np.concatenate([c, np.zeros(steps)])[:steps], steps)


def first_column(steps: int, bands: int) -> Matrix:
    """The first column of the inverse of D."""
    found: Matrix = lfilter([1.0], coefficients(bands), np.eye(1, steps)[0])
    return found


def least_gap(pattern: Matrix) -> int:
    return int(min(np.diff(np.flatnonzero(pattern)), default=99))


@given(st.integers(1, MOST_BANDS))
def test_the_coefficients_are_those_of_the_root_of_the_difference(bands: int) -> None:
    c = np.array(coefficients(bands))

    square = np.convolve(c, c)[:bands]

    expected = np.zeros(bands)
    expected[:2] = [1.0, -1.0][:bands]
    np.testing.assert_allclose(square, expected, atol=1e-15)


@pytest.mark.parametrize("bands", [1, 2, 3, 5, 12, 16])
def test_no_way_to_take_part_moves_the_sums_further_than_the_sensitivity(bands: int) -> None:
    # The run ends where the last column of C has become negligible.
    c = toeplitz(first_column(3000, bands), 12)
    moved = np.sqrt(((PATTERNS @ (c.T @ c)) * PATTERNS).sum(axis=1))
    counts = PATTERNS.sum(axis=1)
    gaps = np.array([least_gap(pattern) for pattern in PATTERNS])

    for updates, separation in product(range(1, 7), range(1, 7)):
        allowed = (counts <= updates) & (gaps >= separation)
        worst = float(moved[allowed].max())
        # A later end of the run has room for more updates of the worker.
        fits = min(updates, 1 + 11 // separation)
        assert worst == pytest.approx(sensitivity(fits, separation, bands), rel=1e-12)
        assert worst <= sensitivity(updates, separation, bands) * (1 + 1e-12)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_updates_of_all_directions_and_lengths_move_the_sums_no_further(
    bands: int, updates: int, separation: int, seed: int
) -> None:
    random, steps = np.random.default_rng(seed), 40
    c = np.linalg.inv(noise_matrix(steps, bands))
    own = np.zeros((steps, 3))
    version = int(random.integers(0, 5))
    for _ in range(updates):
        if version < steps:
            direction = random.standard_normal(3)
            own[version] = random.uniform(0.5, 1.0) * direction / np.linalg.norm(direction)
        version += separation + int(random.integers(0, 4))

    assert np.linalg.norm(c @ own) <= sensitivity(updates, separation, bands) * (1 + 1e-12)


def test_a_worker_that_comes_too_soon_or_once_more_moves_them_further() -> None:
    c = np.linalg.inv(noise_matrix(60, 8))
    allowed = sensitivity(3, 10, 8)

    def moved(*versions: int) -> float:
        return float(np.linalg.norm(c[:, list(versions)].sum(axis=1)))

    assert moved(0, 10, 20) <= allowed
    assert moved(0, 10, 19) > moved(0, 10, 20)
    assert moved(0, 5, 10) > allowed
    assert moved(0, 10, 20, 30) > allowed


@given(st.integers(1, 80), st.integers(1, 32))
def test_the_noise_of_a_model_is_that_of_the_explicit_matrices(steps: int, bands: int) -> None:
    sums = np.tril(np.ones((steps, steps))) @ noise_matrix(steps, bands)

    np.testing.assert_allclose(summed_noise(steps, bands), np.linalg.norm(sums, axis=1), rtol=1e-12)
    assert noise_after(steps, bands) == pytest.approx(summed_noise(steps, bands)[-1], rel=1e-12)
    plain = math.sqrt(3) * np.linalg.norm(np.tril(np.ones((steps, steps))))
    correlated = sensitivity(3, 7, bands) * np.linalg.norm(sums)
    assert noise_against_plain(steps, 3, 7, bands) == pytest.approx(correlated / plain, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "separation", "ratio"), [(200, 4, 0.57), (500, 10, 0.39), (1000, 20, 0.29)]
)
def test_there_is_as_little_noise_as_with_the_banded_square_root(
    steps: int, separation: int, ratio: float
) -> None:
    """That one is x_t = z_t - c_1 x_(t-1) - ..., whose noise depends on all noise before it."""
    c = np.cumprod([1.0, *((2 * j - 1) / (2 * j) for j in range(1, separation))])
    inverse = np.linalg.inv(toeplitz(np.concatenate([c, np.zeros(steps)])[:steps], steps))
    sums = np.tril(np.ones((steps, steps))) @ inverse
    square_root = np.linalg.norm(c) * np.linalg.norm(sums) / math.sqrt(steps * (steps + 1) / 2)

    updates = steps // separation
    bands = best_bands(steps, updates, separation, 32)

    assert square_root == pytest.approx(ratio, abs=0.005)
    assert noise_against_plain(steps, updates, separation, bands) <= square_root + 0.002


def test_at_500_versions_and_a_separation_of_10_less_than_four_tenths_of_the_noise_is_left() -> None:
    for updates in (1, 8, 50):
        assert noise_against_plain(500, updates, 10, best_bands(500, updates, 10, 16)) <= 0.4


def test_the_best_number_of_bands_is_better_than_all_others_and_one_where_nothing_can_be_won() -> None:
    best = best_bands(100, 8, 10, MOST_BANDS)

    ratios = {bands: noise_against_plain(100, 8, 10, bands) for bands in range(1, MOST_BANDS + 1)}
    assert min(ratios, key=ratios.__getitem__) == best
    assert best_bands(100, 8, 10, 4) == 4
    assert best_bands(1, 1, 1, MOST_BANDS) == 1


@given(st.integers(0, 30), st.integers(1, 20), st.integers(1, MOST_BANDS))
def test_a_version_that_is_shown_twice_costs_no_more_than_one_more_update(
    before: int, separation: int, bands: int
) -> None:
    """The second showing is one more row of C, in which all earlier updates of a worker may have a part."""
    row = float(first_column(before * separation + 1, bands)[::separation].sum())
    spent = sensitivity(before + 1, separation, bands)

    assert spent**2 + row**2 <= sensitivity(before + 2, separation, bands) ** 2 * (1 + 1e-12)


@pytest.mark.parametrize("bands", [0, -1, MOST_BANDS + 1])
def test_other_numbers_of_bands_are_refused(bands: int) -> None:
    with pytest.raises(ValueError, match=f"noise must have 1 to {MOST_BANDS} bands, not {bands}"):
        coefficients(bands)


@pytest.mark.parametrize(("updates", "separation"), [(0, 1), (1, 0)])
def test_no_updates_and_no_separation_are_refused(updates: int, separation: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sensitivity(updates, separation, 1)
