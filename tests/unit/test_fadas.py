"""FADAS: the paper's pseudocode in float64, numbers by hand, and known faults of public code."""

from collections.abc import Sequence

import numpy as np
import pytest
from builders import a_model, a_strategy, a_version, an_update, float32s
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle_aggregator.strategies.fadas import DelayAdaptiveAmsGrad
from fluffle_aggregator.strategies.registry import StrategySettings
from fluffle_aggregator.strategies.strategy import UpdateFacts
from fluffle_aggregator.transforms import Moments, starting_moments

SIZE = 5
# Sixteenths, so that the sum of a buffer is exact and no cancellation is divided by a small second moment.
vectors = arrays(np.float32, SIZE, elements=st.integers(-64, 64).map(lambda number: number / 16))
buffers = st.lists(st.tuples(vectors, st.integers(0, 20), st.integers(1, 4)), min_size=4, max_size=4)


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def run(optimizer: DelayAdaptiveAmsGrad, deltas: Sequence[tuple[float, int]]) -> tuple[list[float], Moments]:
    """Return what each delta, given with its buffer's greatest staleness, moves a model of one element."""
    moments = starting_moments(optimizer.starts, 1)
    moves = []
    for delta, staleness in deltas:
        change = vector(delta)
        optimizer.apply(change, moments, staleness)
        moves.append(float(change[0]))
    return moves, moments


def reference(
    base: Vector, buffers: Sequence[Sequence[tuple[Vector, int, int]]], *, eta: float, tau_c: int
) -> NDArray[np.float64]:
    """Algorithm 1 of Wang et al. with the delay-adaptive rate, line by line in float64."""
    x = base.astype(np.float64)
    m, v, v_hat = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for buffer in buffers:
        d = np.average([delta.astype(np.float64) for delta, _, _ in buffer], axis=0)
        m = 0.9 * m + 0.1 * d
        v = 0.99 * v + 0.01 * d**2
        v_hat = np.maximum(v_hat, v)
        tau_max = max(staleness for _, staleness, _ in buffer)
        eta_t = eta if tau_max <= tau_c else eta / tau_max
        x = x + eta_t * m / (np.sqrt(v_hat) + 1e-8)
    return x


@given(vectors, st.lists(buffers, min_size=1, max_size=5), st.sampled_from([1, 5]))
def test_fadas_agrees_with_the_papers_pseudocode_in_float64(
    base: Vector, arrivals: list[list[tuple[Vector, int, int]]], tau_c: int
) -> None:
    strategy = StrategySettings(
        strategy="fadas", weigh_by="none", server_learning_rate=0.25, delay_threshold=tau_c
    ).make_strategy()
    model, moments = base.copy(), strategy.starting_moments(SIZE)

    for buffer in arrivals:
        accumulator = strategy.rule.zero()
        for delta, staleness, examples in buffer:
            accumulator = accumulator.adding(
                float32s(delta), strategy.weigh(UpdateFacts(staleness, examples))
            )
        strategy.step(model, accumulator, moments)

    np.testing.assert_allclose(model, reference(base, arrivals, eta=0.25, tau_c=tau_c), rtol=1e-5, atol=1e-5)


def test_two_steps_are_those_computed_by_hand() -> None:
    optimizer = DelayAdaptiveAmsGrad(learning_rate=0.5, beta1=0.5, beta2=0.75, epsilon=0.0)

    moves, _ = run(optimizer, [(2, 0), (-4, 0)])

    # m = 1 and v = v_hat = 1; then m = 0.5 - 2 = -1.5 and v = v_hat = 0.75 + 4 = 4.75.
    assert moves == pytest.approx([0.5, 0.5 * -1.5 / 4.75**0.5], rel=1e-6)


def test_the_step_is_divided_by_the_largest_second_moment_so_far_and_not_by_the_last() -> None:
    optimizer = DelayAdaptiveAmsGrad(learning_rate=1.0, beta1=0.0, beta2=0.5, epsilon=0.0)

    moves, moments = run(optimizer, [(8, 0), (1, 0), (1, 0)])

    assert moments["v"][0] == 8.75  # 32, then 16.5, then 8.75
    assert moments["v_hat"][0] == 32
    assert moves[-1] == pytest.approx(1 / 32**0.5)


@pytest.mark.parametrize(("staleness", "rate"), [(0, 0.3), (1, 0.3), (2, 0.15), (3, 0.1), (30, 0.01)])
def test_beyond_the_threshold_the_rate_is_divided_by_the_greatest_staleness(
    staleness: int, rate: float
) -> None:
    optimizer = DelayAdaptiveAmsGrad(learning_rate=0.3, delay_threshold=1)

    assert optimizer.rate(staleness) == pytest.approx(rate)


@given(st.floats(1e-4, 1.0), st.integers(0, 200), st.integers(1, 50))
def test_the_rate_is_never_above_the_bound_that_the_paper_prints(
    eta: float, staleness: int, tau_c: int
) -> None:
    printed = eta if staleness <= tau_c else min(eta, 1 / staleness)

    assert DelayAdaptiveAmsGrad(eta, delay_threshold=tau_c).rate(staleness) <= printed * (1 + 1e-12)


def test_the_greatest_staleness_of_the_buffer_is_counted_before_its_step() -> None:
    strategy = a_strategy("fadas", buffer_size=2, learning_rate=1.0)
    model = a_model(strategy, record=a_version())
    for sequence in (1, 2, 3, 4):
        model.fold(an_update("fast", sequence, base_version=model.version, values=[1.0] * 4), now=0.0)
    fresh = model.vector.copy()
    moment = {name: values.copy() for name, values in model.moments.items()}

    # The model is at version 2: the slow worker's update, from version 0, has staleness 2.
    model.fold(an_update("slow", 1, base_version=0, values=[1.0] * 4), now=0.0)
    model.fold(an_update("fast", 5, base_version=2, values=[1.0] * 4), now=0.0)

    expected = vector(*[1.0] * 4)
    DelayAdaptiveAmsGrad(1.0).apply(expected, moment, 2)
    assert model.version == 3
    assert (model.vector - fresh).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_buffer_weighs_its_updates_by_their_examples() -> None:
    strategy = a_strategy("fadas", buffer_size=2, weigh_by="examples")
    accumulator = strategy.rule.zero()
    for delta, examples in ((1.0, 30), (-1.0, 10)):
        accumulator = accumulator.adding(float32s(vector(delta)), strategy.weigh(UpdateFacts(0, examples)))

    assert accumulator.close().tolist() == [0.5]


def test_a_rule_that_holds_vectors_knows_the_greatest_staleness_too() -> None:
    strategy = a_strategy("fadas", buffer_size=3, rule="median")
    accumulator = strategy.rule.zero()
    for staleness in (1, 7, 0):
        accumulator = accumulator.adding(float32s(vector(1.0)), strategy.weigh(UpdateFacts(staleness, 1)))

    assert accumulator.totals.staleness == 7
