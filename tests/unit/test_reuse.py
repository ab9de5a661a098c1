"""Reuse: its rule in float64, how far the model follows an update, and a new leader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from arrivals import Arrival, fold, mean_of, strategy_of
from builders import SIZE, a_model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle_aggregator.sections import NOTHING, Section
from fluffle_aggregator.update_cache import shares_in
from fluffle_aggregator.used_cache import UsedCache

Float64s = NDArray[np.float64]
WORKERS = ("a", "b", "c")

# Not nearly zero: how far the model has moved along an update is counted in the update's own length.
vectors = arrays(np.float32, SIZE, elements=st.sampled_from([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0]))
arrivals = st.lists(
    st.builds(Arrival, st.sampled_from(WORKERS), vectors, st.just(1)), min_size=1, max_size=12
)
ONES = np.ones(SIZE, np.float32)


@dataclass
class Kept:
    """A worker's last update, and how far the model has moved along it."""

    values: Float64s
    used: float = 0.0

    def left(self, limit: float) -> Float64s:
        return self.values * min(max(1 - self.used / limit, 0), 2)


def reuse(come: Sequence[Arrival], *, size: int, rate: float, calibration: float, limit: float) -> Float64s:
    """The rule of ReuseSettings, as its docstring writes it."""
    x, kept = np.zeros(SIZE), dict[str, Kept]()
    for start in range(0, len(come) - len(come) % size, size):
        mean = np.mean([each.left(limit) for each in kept.values()], axis=0) if kept else np.zeros(SIZE)
        news = np.zeros(SIZE)
        for arrival in come[start : start + size]:
            values = arrival.values.astype(np.float64)
            news += values - (kept[arrival.worker].values if arrival.worker in kept else 0.0)
            kept[arrival.worker] = Kept(values)
        step = min(0.75, rate, rate * size / len(kept)) * (mean + calibration * news / size)
        for each in kept.values():
            if each.values.any():
                each.used += float(step @ each.values / (each.values @ each.values))
        x = x + step
    return x


@given(
    arrivals,
    st.integers(1, 3),
    st.sampled_from([0.25, 1.5]),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([0.5, 1.0]),
)
def test_the_model_moves_as_the_rule_says(
    come: list[Arrival], size: int, rate: float, calibration: float, limit: float
) -> None:
    model = a_model(
        strategy_of(
            "reuse",
            buffer_size=size,
            server_learning_rate=rate,
            calibration=calibration,
            reuse_limit=limit,
        )
    )

    fold(model, come)

    expected = reuse(come, size=size, rate=rate, calibration=calibration, limit=limit)
    np.testing.assert_allclose(model.vector, expected, rtol=1e-3, atol=1e-3)


@given(arrivals, st.integers(1, 3))
def test_without_a_limit_it_is_ca2fl(come: list[Arrival], size: int) -> None:
    # Of rates so small that the most that a step takes does not count.
    paper = strategy_of("ca2fl", buffer_size=size, server_learning_rate=0.5)
    endless = strategy_of(
        "reuse", buffer_size=size, calibration=1.0, server_learning_rate=0.5, reuse_limit=1e12
    )
    moved = []
    for strategy in (paper, endless):
        model = a_model(strategy)
        fold(model, come)
        moved.append(model.vector)

    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4, atol=1e-3)


def test_the_model_follows_a_silent_workers_update_no_further_than_the_limit() -> None:
    moved = {}
    for name in ("ca2fl", "reuse"):
        model = a_model(strategy_of(name))
        # Across the update, so that nothing else moves the model along it.
        across = np.array([1, -1, 1, -1], np.float32)
        fold(model, [Arrival("slow", ONES), *[Arrival("fast", across)] * 200])
        moved[name] = float(model.vector @ ONES) / SIZE

    assert moved["ca2fl"] > 50
    assert 0.9 < moved["reuse"] < 1.1


@pytest.mark.parametrize(("workers", "size"), [(1, 1), (3, 3), (3, 1)])
def test_steps_settle_when_workers_always_send_the_same(workers: int, size: int) -> None:
    model = a_model(strategy_of("reuse", buffer_size=size))
    steps = []
    for _ in range(60):
        before = model.vector.copy()
        fold(model, [Arrival(worker, ONES) for worker in WORKERS[:workers]])
        steps.append(float((model.vector - before)[0]))

    # In each round about the same, which is a good part of what the workers want.
    assert max(steps[-20:]) - min(steps[-20:]) < 0.01
    assert 0.4 < steps[-1] < 1.1


def test_an_update_that_the_model_moves_against_counts_twice_at_most() -> None:
    model = a_model(strategy_of("reuse", calibration=2.0, server_learning_rate=2.0))
    fold(model, [Arrival("slow", ONES), *[Arrival("fast", -8 * ONES * 2**n) for n in range(6)]])

    assert isinstance(model.cache, UsedCache)
    before = mean_of(model.cache)
    fast = -8 * ONES * 2**5
    used = {each.worker: each.used for each in model.cache.kept()}
    assert used["slow"] < -1
    # Both weigh the same: half of each, of the slow one twice.
    left = np.clip(1 - used["fast"], 0, 2)
    np.testing.assert_allclose(before, (2 * ONES + left * fast) / 2, rtol=1e-4)


def test_an_update_of_zeros_is_kept_and_moves_nothing() -> None:
    model = a_model(strategy_of("reuse"))
    zeros: Vector = np.zeros(SIZE, np.float32)

    fold(model, [Arrival("a", zeros), Arrival("b", ONES), Arrival("a", zeros)])

    assert np.isfinite(model.vector).all()
    assert model.cache is not None
    assert [each.worker for each in model.cache.kept()] == ["b", "a"]


def test_a_worker_that_has_left_is_forgotten() -> None:
    model = a_model(strategy_of("reuse", forget_after=5))
    fold(model, [Arrival("gone", -ONES), *[Arrival("here", ONES)] * 11])

    assert [worker for worker, _ in model.forgotten.take(model.cache, model.contributors)] == ["gone"]
    assert model.cache is not None
    assert [each.worker for each in model.cache.kept()] == ["here"]


def test_weights_by_examples_count_in_what_is_left() -> None:
    model = a_model(strategy_of("reuse", weigh_by="examples"))
    fold(model, [Arrival("a", ONES, 300), Arrival("b", replace(Arrival("b", -ONES)).values, 100)])
    assert model.cache is not None
    kept = model.cache.kept()
    weights = np.array([each.weight for each in kept])
    left = np.clip([1 - each.used for each in kept], 0, 2)

    expected = (weights[0] * left[0] - weights[1] * left[1]) / weights.sum()
    np.testing.assert_allclose(mean_of(model.cache), expected * ONES, rtol=1e-5)
    assert weights[0] > weights[1]


def test_an_update_whose_length_is_too_large_for_float32_never_makes_the_model_nan() -> None:
    model = a_model(strategy_of("reuse"))
    large = np.full(SIZE, 1e25, np.float32)

    fold(model, [Arrival("large", large), Arrival("here", ONES), Arrival("here", ONES)])

    assert np.isfinite(model.vector).all()
    assert model.cache is not None
    # After its own step it counts no more.
    here = shares_in(model.cache.in_mean(), Section(0, SIZE, NOTHING))["here"]
    np.testing.assert_allclose(mean_of(model.cache), ONES * here, rtol=1e-6)
