"""Whether a noisy curve improves, stands still or gets worse: told right, and for the right reasons."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_cli.watching.progress import FEWEST, LONG, Trend, trend_of

CURVES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80)


def course_of(values: list[float], *, higher_is_better: bool = True) -> str:
    trend = trend_of(values, higher_is_better=higher_is_better)
    assert trend is not None
    return trend.course


def noisy(values: list[float], seed: int, *, noise: float = 0.01) -> list[float]:
    return list(np.asarray(values) + np.random.default_rng(seed).normal(0, noise, len(values)))


@pytest.mark.parametrize("seed", range(20))
def test_the_course_of_a_curve_is_recognised_despite_noise(seed: int) -> None:
    learning = [1 - math.exp(-number / 15) for number in range(40)]
    over = [0.3 + 0.5 * math.exp(-number / 5) + 0.02 * max(0, number - 15) for number in range(50)]

    assert course_of(noisy(learning, seed)) == "improving"
    assert course_of(noisy([*learning, *[learning[-1] - 0.03] * 30], seed)) in {"flat", "worse"}
    assert course_of(noisy(over, seed), higher_is_better=False) == "worse"


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_never_called_worse(seed: int) -> None:
    assert course_of(noisy([0.9] * 60, seed)) in {"flat", "improving"}


def test_a_dip_that_is_over_is_not_called_worse() -> None:
    assert course_of([*[0.9] * 10, *[0.5] * 5, *[0.89] * 15]) == "flat"


def test_a_curve_of_few_values_is_not_judged() -> None:
    assert course_of([0.9, 0.1, 0.1, 0.1]) == "early"
    assert trend_of([], higher_is_better=True) is None
    assert trend_of([math.nan, math.inf], higher_is_better=True) is None


def test_the_place_of_the_best_point_counts_values_that_are_not_finite_too() -> None:
    trend = trend_of([math.nan, 0.5, math.nan, 0.9, 0.8], higher_is_better=True)

    assert trend is not None
    assert trend.best == 3


@given(values=CURVES, higher=st.booleans())
def test_a_curve_and_its_mirror_image_have_the_same_course(values: list[float], *, higher: bool) -> None:
    trend = trend_of(values, higher_is_better=higher)
    mirrored = trend_of([-value for value in values], higher_is_better=not higher)

    assert trend is not None
    assert mirrored == Trend(trend.course, trend.best, -trend.was, -trend.now)


@given(CURVES)
def test_a_trend_agrees_with_the_values_of_its_curve(values: list[float]) -> None:
    trend = trend_of(values, higher_is_better=True)

    assert trend is not None
    assert values[trend.best] == max(values)
    assert min(values) <= trend.now <= trend.was <= max(values)
    assert (trend.course == "early") == (len(values) < FEWEST)
    if trend.course in {"flat", "worse"}:
        assert len(values) > LONG


@given(st.lists(st.floats(0, 1), min_size=FEWEST, max_size=60, unique=True))
def test_a_curve_that_only_rises_improves(values: list[float]) -> None:
    assert course_of(sorted(values)) == "improving"
