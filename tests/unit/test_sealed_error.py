"""The noise of encryption stays far below what anybody can see in a model, also after 10,000 updates."""

import math

import numpy as np
import pytest

from fluffle.sealed.keys import SealedKeys, new_secret
from fluffle.sealed.parameters import DEGREE, SCALE, SLOTS
from fluffle.sealed.plan import MOST_ERROR, SealedPlan, SealedState
from fluffle.sealed.residues import add_weighted, negated, zeros

KEY = SealedKeys(new_secret())
# SEAL adds a number to each coefficient that counts the bits of 21 pairs: of this variance, and at most 21.
NOISE_VARIANCE, ROUNDING_VARIANCE = 21 / 2, 1 / 12
# A slot is the real part of a sum over all coefficients, each times a number of absolute value 1.
ERROR_OF_ONE = math.sqrt(DEGREE / 2 * (NOISE_VARIANCE + ROUNDING_VARIANCE)) / SCALE
PLAN = SealedPlan(key=KEY.key_id, clip=0.5, greatest=64, buffer_size=10)


def test_the_error_of_one_encryption_is_what_the_noise_predicts() -> None:
    values = np.random.default_rng(1).uniform(-0.5, 0.5, 20 * SLOTS).astype(np.float32)

    error = KEY.decrypt(KEY.encrypt(values), values.size) - values

    assert float(error.std()) == pytest.approx(ERROR_OF_ONE, rel=0.05)
    assert abs(float(error.mean())) < 5 * ERROR_OF_ONE / math.sqrt(values.size)
    assert float(np.abs(error).max()) < MOST_ERROR / 50


def test_after_10_000_weighted_updates_the_model_is_right_to_a_millionth_of_its_largest_weight() -> None:
    random = np.random.default_rng(2)
    weights = random.choice([64, 45, 37, 32, 29], 10_000)
    total, exact = zeros(SLOTS), np.zeros(SLOTS)
    state, sum_of_squares = SealedState(), 0.0
    towards = random.normal(0, 0.001, SLOTS)

    for weight in weights.tolist():
        delta = (towards + random.normal(0, 0.01, SLOTS)).astype(np.float32)
        add_weighted(total, KEY.encrypt(delta), weight)
        exact += weight * delta.astype(np.float64)
        state, sum_of_squares = state.with_updates(weight), sum_of_squares + weight**2

    assert state.has_room(PLAN, PLAN.divisor), "no refresh is needed for so many"
    found, expected = PLAN.step * KEY.decrypt(total, SLOTS), PLAN.step * exact
    error, largest = np.abs(found - expected), float(np.abs(expected).max())
    predicted = PLAN.step * math.sqrt(sum_of_squares) * ERROR_OF_ONE
    assert largest > 1
    assert float(np.std(found - expected)) == pytest.approx(predicted, rel=0.1)
    assert float(error.max()) < 6 * predicted
    assert float(error.max()) < 1e-6 * largest
    np.testing.assert_array_less(error, PLAN.step * weights.sum() * MOST_ERROR)


def test_a_refresh_adds_no_more_than_the_noise_of_one_encryption() -> None:
    exact = np.random.default_rng(3).uniform(-1000, 1000, SLOTS)
    total = KEY.encrypt(exact)

    for _ in range(100):
        difference = KEY.encrypt(KEY.decrypt(total, SLOTS))
        add_weighted(difference, negated(total))
        add_weighted(total, difference)

    error, predicted = KEY.decrypt(total, SLOTS) - exact, math.sqrt(101) * ERROR_OF_ONE
    # SEAL rounds what lies between two whole numbers away from zero, which adds a little each time.
    assert 0.9 * predicted < float(np.std(error)) < 1.2 * predicted
    assert float(np.abs(error).max()) < MOST_ERROR / 5
