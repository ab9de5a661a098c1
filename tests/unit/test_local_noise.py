"""The noise that a worker adds to each update, and the canary game against what it sends."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from builders import SIZE, a_layout
from hypothesis import given
from hypothesis import strategies as st
from privately import a_privacy_plan
from scipy import stats

from fluffle.model import Layout, TensorSpec, Vector
from fluffle.plan import Plan
from fluffle.privacy.gaussian import epsilon_of
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.grid import Grid
from fluffle.privacy.plan import PrivacyPlan
from fluffle.vector_math import norm_in_float64
from fluffle_worker.local_noise import why_not_local, with_noise

GAMES, UPDATES, CLIP, EPSILON = 1000, 2, 0.5, 4.0
PLAN = a_privacy_plan(epsilon=EPSILON, clip=CLIP, updates=UPDATES, mechanism="local")
CANARY: Vector = np.array([3.0, 0.0, 0.0, 0.0], np.float32)


def middle(size: int) -> bytes:
    """Return bits that stand for noise of next to nothing, as far as a normal number goes."""
    return np.full(size // 8, 2**63 - 1, np.uint64).tobytes()


def without_noise(vector: Vector, plan: PrivacyPlan) -> Vector:
    return with_noise(vector, plan, middle)


def test_the_noise_has_the_deviation_that_so_many_updates_need() -> None:
    noise = np.concatenate([with_noise(np.zeros(50_000, np.float32), PLAN) for _ in range(4)])

    assert pytest.approx(math.sqrt(UPDATES) * CLIP / PLAN.noise.mu) == PLAN.std
    assert float(noise.std()) == pytest.approx(PLAN.std, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert stats.kstest(noise[:5000] / PLAN.std, "norm").pvalue > 1e-4


def test_no_two_updates_have_the_same_noise() -> None:
    vector = np.zeros(SIZE, np.float32)

    assert with_noise(vector, PLAN).tolist() != with_noise(vector, PLAN).tolist()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50))
def test_an_update_is_clipped_before_it_has_noise_and_is_not_written_to(values: list[float]) -> None:
    vector = np.array(values, np.float32)
    before = vector.copy()

    found = without_noise(vector, PLAN)

    assert norm_in_float64([found]) <= CLIP * (1 + 1e-6)
    scale = min(1.0, CLIP / max(norm_in_float64([vector]), 1e-300))
    assert found == pytest.approx(vector * scale, abs=CLIP * 1e-5)
    assert vector.tolist() == before.tolist()


def test_what_is_sent_are_whole_steps_so_that_no_digit_tells_more() -> None:
    grid = Grid.for_noise(PLAN.std, PLAN.clip, SIZE)

    steps = with_noise(CANARY, PLAN).astype(np.float64) / grid.step

    assert steps.tolist() == np.rint(steps).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_cannot_be_clipped(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be clipped"):
        with_noise(np.array([1.0, value], np.float32), PLAN)


def test_a_plan_that_does_not_keep_to_its_promise_is_refused() -> None:
    layout, plan = a_layout(100), Plan(privacy=PLAN)
    averaged = Layout(
        (TensorSpec("kernel", (2,), "float32"), TensorSpec("mean", (2,), "float32", "statistic"))
    )

    assert why_not_local(PLAN, plan, layout) == ""
    assert "epsilon is" in why_not_local(replace(PLAN, std=PLAN.std * 0.99), plan, layout)
    assert "epsilon is" in why_not_local(replace(PLAN, updates=UPDATES + 1), plan, layout)
    assert "single updates" in why_not_local(replace(PLAN, bands=2), plan, layout)
    assert "averages" in why_not_local(PLAN, plan, averaged)
    assert "deltas" in why_not_local(PLAN, replace(plan, sends="weights"), layout)
    assert "lost in the noise" in why_not_local(PLAN, plan, a_layout(10**16))


def lower_bound(drawn: PrivacyPlan) -> float:
    """An epsilon that a worker's messages exceed, with a confidence of 95 %.

    Somebody sees all of them, and guesses whether there is a canary in them, or nothing but noise.
    """

    def play(*, is_there: bool) -> float:
        vector = CANARY if is_there else np.zeros_like(CANARY)
        shown = [float(with_noise(vector, drawn)[0]) for _ in range(UPDATES)]
        return sum(shown) / (UPDATES * CLIP)

    missed = sum(play(is_there=True) < 0.5 for _ in range(GAMES))
    wrong = sum(play(is_there=False) >= 0.5 for _ in range(GAMES))
    highest = [stats.beta.ppf(0.975, errors + 1, GAMES - errors) for errors in (missed, wrong)]
    mu = -sum(NormalDist().inv_cdf(rate) for rate in highest)
    return epsilon_of(mu, PLAN.delta) if mu > 0 else 0.0


def test_a_canary_shows_less_than_is_promised_and_more_than_half_of_it() -> None:
    assert EPSILON / 2 < lower_bound(PLAN) <= EPSILON


def test_a_canary_shows_that_noise_is_three_times_too_small() -> None:
    assert lower_bound(replace(PLAN, std=PLAN.std / 3)) > 1.5 * EPSILON


def test_a_worker_that_sends_more_than_is_accounted_for_is_found_too() -> None:
    accounted = a_privacy_plan(epsilon=1.0, clip=CLIP, updates=1, mechanism="local")
    real = GaussianNoise(clip=CLIP, updates=UPDATES, separation=1, bands=1, std=accounted.std)

    assert real.epsilon_after(UPDATES, accounted.delta) > accounted.epsilon
