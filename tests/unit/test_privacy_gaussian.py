"""Epsilon, delta and mu of Gaussian noise, against tables, other programs and plain integration."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fluffle.privacy.gaussian import delta_of, epsilon_of, guess_rate, mu_of
from fluffle.privacy.gaussian_noise import GaussianNoise


@pytest.mark.parametrize(
    ("mu", "epsilon"), [(0.25, 0.93), (0.5, 1.99), (1.0, 4.38), (1.5, 7.05), (2.0, 10.0), (3.0, 16.7)]
)
def test_epsilon_at_a_delta_of_one_in_a_hundred_thousand(mu: float, epsilon: float) -> None:
    assert epsilon_of(mu, 1e-5) == pytest.approx(epsilon, rel=0.005)


@pytest.mark.parametrize(
    ("epsilon", "mu", "delta"),
    [
        (0.0, 1.0, 0.3829249225480262),
        (0.0, 1e-6, 3.98942280401416e-07),
        (0.93, 0.25, 9.425157526032243e-06),
        (0.3, 0.05, 9.08033996640092e-12),
        (0.006, 0.001, 1.568267361641528e-13),
        (8.0, 1.0, 3.6508216874217905e-15),
        (8.0, 1.7, 1.6487521214399674e-05),
        (40.0, 4.0, 2.039383414445811e-16),
        (3.0, 10.0, 0.9999975362130356),
        (700.0, 30.0, 3.0641704385121706e-17),
        (1e5, 440.0, 1.7323407741582573e-13),
        (50_000.0, 300.0, 1.0845923428855532e-62),
    ],
)
def test_delta_is_right_where_its_terms_are_huge_or_nearly_the_same(
    epsilon: float, mu: float, delta: float
) -> None:
    """The numbers are those of mpmath with 60 digits."""
    assert delta_of(epsilon, mu) == pytest.approx(delta, rel=5e-14 / min(mu, 1.0) + 2e-13)


@pytest.mark.parametrize(
    ("multiplier", "updates", "delta", "epsilon"),
    [
        (1.0, 1, 1e-5, 4.377178),
        (2.0, 8, 1e-5, 6.57297),
        (0.6, 1, 1e-6, 8.84053),
        (5.0, 100, 1e-8, 12.749246),
        (10.0, 20, 1e-10, 2.752971),
    ],
)
def test_dp_accounting_finds_the_same_epsilon(
    multiplier: float, updates: int, delta: float, epsilon: float
) -> None:
    """From dp-accounting 0.6.0, which cannot be installed here: it needs an attrs below 24.

    a = PLDAccountant(value_discretization_interval=1e-4)
    a.compose(GaussianDpEvent(multiplier), updates)
    a.get_epsilon(delta)
    """
    noise = GaussianNoise(clip=2.0, updates=updates, separation=3, bands=1, std=2.0 * multiplier)

    assert noise.epsilon_after(updates, delta) == pytest.approx(epsilon, abs=1e-5)


@given(st.floats(0.0, 6.0), st.floats(0.05, 4.0))
def test_delta_is_what_one_neighbour_has_more_than_the_other_allows(epsilon: float, mu: float) -> None:
    x = np.linspace(-12.0, 12.0 + mu, 20_001)
    more = np.exp(-((x - mu) ** 2) / 2) - math.exp(epsilon) * np.exp(-(x**2) / 2)

    expected = np.maximum(more, 0.0).sum() * (x[1] - x[0]) / math.sqrt(2 * math.pi)

    assert delta_of(epsilon, mu) == pytest.approx(expected, abs=1e-6)


@given(st.floats(0.01, 40.0), st.floats(-15.0, -0.1).map(lambda power: 10.0**power))
def test_epsilon_keeps_to_delta_and_nothing_smaller_does(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)

    assert delta_of(epsilon, mu) <= delta
    assert epsilon == 0 or delta_of(epsilon * (1 - 1e-9), mu) > delta


@given(st.floats(0.001, 1000.0), st.floats(-15.0, -0.1).map(lambda power: 10.0**power))
def test_mu_keeps_to_epsilon_and_delta_and_nothing_larger_does(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)

    assert delta_of(epsilon, mu) <= delta
    assert delta_of(epsilon, mu * (1 + 1e-9)) > delta
    assume(epsilon_of(mu, delta) > 0)
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-6)


def test_whoever_guesses_is_right_as_often_as_the_best_test_between_two_normal_numbers() -> None:
    random = np.random.default_rng(5)
    draws = random.standard_normal(400_000)

    right = (np.mean(draws < 0.8) + np.mean(draws + 1.6 > 0.8)) / 2

    assert guess_rate(1.6) == pytest.approx(right, abs=0.003)
    assert guess_rate(0.0) == 0.5


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta must be above 0 and below 1"):
        mu_of(1.0, delta)
    with pytest.raises(ValueError, match="delta must be above 0 and below 1"):
        epsilon_of(1.0, delta)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_an_epsilon_or_a_mu_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be a number above 0"):
        mu_of(wrong, 1e-5)
    with pytest.raises(ValueError, match="mu above 0"):
        epsilon_of(wrong, 1e-5)
    with pytest.raises(ValueError, match="epsilon must be a number above 0"):
        mu_of(math.inf, 1e-5)


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 16), st.floats(0.5, 20.0))
def test_noise_keeps_a_promise_and_half_of_the_updates_spend_less(
    updates: int, separation: int, bands: int, epsilon: float
) -> None:
    noise = GaussianNoise.keeping(
        epsilon=epsilon, delta=1e-6, clip=0.3, updates=updates, separation=separation, bands=bands
    )

    spent = [noise.epsilon_after(count, 1e-6) for count in range(updates + 2)]

    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert spent[updates] == pytest.approx(epsilon, rel=1e-6)
    assert spent[updates + 1] > epsilon


def test_plain_noise_of_k_updates_has_a_mu_of_the_root_of_k_over_the_multiplier() -> None:
    noise = GaussianNoise(clip=2.0, updates=9, separation=5, bands=1, std=4.0)

    assert noise.multiplier == 2.0
    assert noise.mu == pytest.approx(math.sqrt(9) / 2.0)
    assert noise.mu_after(4) == pytest.approx(math.sqrt(4) / 2.0)
