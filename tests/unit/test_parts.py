"""Updates that hold the last tensors of the model alone, in each strategy."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from arrivals import strategy_of, taken_over
from builders import a_config, a_strategy, float32s
from hypothesis import given
from hypothesis import strategies as st
from leading import a_server, aggregate, newest
from numpy.typing import NDArray
from part_updates import (
    EARLY,
    LATE,
    LAYOUT,
    Arrival,
    a_model_of,
    an_arrived,
    arrivals,
    published,
    sent,
    taken_in,
    vectors,
    weight_of,
)

from fluffle.model import Vector
from fluffle_aggregator.strategies.registry import STRATEGIES, StrategySettings
from fluffle_aggregator.strategies.strategy import Strategy


def strategies() -> dict[str, Strategy]:
    """Return each strategy, and each rule and server optimizer."""
    made = {name: StrategySettings(strategy=name).make_strategy() for name in STRATEGIES}
    for optimizer in ("momentum", "adam", "yogi", "adagrad"):
        made[f"fedbuff, {optimizer}"] = a_strategy(optimizer=optimizer, buffer_size=3)
    for name in ("fedbuff", "fedavg", "fadas"):
        made[f"{name}, median"] = a_strategy(name, rule="median", buffer_size=5)
        made[f"{name}, normalized"] = a_strategy(name, normalize_steps=True, buffer_size=3)
    made["reuse, momentum"] = strategy_of("reuse", buffer_size=3, server_optimizer="momentum")
    return made


Float64s = NDArray[np.float64]
MADE = strategies()


@given(name=st.sampled_from(list(MADE)), come=arrivals, values=vectors)
def test_parts_change_nothing_outside_of_them(name: str, come: list[Arrival], values: Vector) -> None:
    model = a_model_of(MADE[name], values=values.tolist())
    moments = {each: vector.copy() for each, vector in model.moments.items()}

    taken_in(model, [replace(one, is_part=True) for one in come])
    model.step()

    assert model.vector[EARLY].tobytes() == values[EARLY].tobytes()
    assert model.statistics[:2].tolist() == [7, 8]
    assert model.integers[:4] == bytes(4)
    assert model.integers[4:] == np.array([-len(come)], "<i4").tobytes()
    for each, vector in moments.items():
        np.testing.assert_array_equal(model.moments[each][EARLY], vector[EARLY])


def a_part_of(strategy: Strategy, come: Sequence[Arrival], model: Vector, elements: slice) -> Vector:
    """Return what becomes of some elements alone, if only the updates come that have them."""
    part, accumulator = model[elements].copy(), strategy.rule.zero()
    for one in come:
        if elements is LATE or not one.is_part:
            vector = float32s(one.values[elements])
            accumulator = accumulator.adding(vector, weight_of(strategy, one))
    if accumulator.totals.count:
        strategy.step(part, accumulator, strategy.starting_moments(part.size))
    return part


@given(
    name=st.sampled_from([name for name, made in MADE.items() if not made.keeping and "median" not in name]),
    come=arrivals,
    model=vectors,
)
def test_each_element_is_aggregated_as_if_only_updates_with_it_had_come(
    name: str, come: list[Arrival], model: Vector
) -> None:
    strategy, accumulator, whole = MADE[name], MADE[name].rule.zero(), model.copy()
    is_synchronous = strategy.one_update_per_version
    come = [replace(one, late=0 if is_synchronous else one.late) for one in come[: strategy.buffer_size]]
    for one in come:
        accumulator = accumulator.adding(sent(one), weight_of(strategy, one))

    strategy.step(whole, accumulator, strategy.starting_moments(LAYOUT.size))

    expected = [a_part_of(strategy, come, model, each) for each in (EARLY, LATE)]
    np.testing.assert_allclose(whole, np.concatenate(expected), rtol=1e-5, atol=1e-5)


@given(come=arrivals, model=vectors)
def test_an_element_that_too_few_updates_have_for_a_robust_rule_does_not_move(
    come: list[Arrival], model: Vector
) -> None:
    strategy, whole = MADE["fedbuff, median"], model.copy()
    accumulator = strategy.rule.zero()
    for one in come:
        accumulator = accumulator.adding(sent(one), weight_of(strategy, one))

    strategy.step(whole, accumulator, {})

    rows = np.array([one.values.astype(np.float64) * (1 + one.late) ** -0.5 for one in come])
    is_whole = [not one.is_part for one in come]
    expected = model.astype(np.float64)
    expected[LATE] += np.median(rows[:, LATE], axis=0)
    if sum(is_whole) >= min(3, len(come)):
        expected[EARLY] += np.median(rows[is_whole, EARLY], axis=0)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)


def cached(come: Sequence[Arrival], *, size: int, rate: float, calibration: float | None) -> Float64s:
    """ACE, and CA2FL with a calibration, of each element over the workers whose last update has it."""
    x = np.zeros(LAYOUT.size)
    for elements in (EARLY, LATE):
        last = dict[str, Float64s]()
        for start in range(0, len(come) - len(come) % size, size):
            before = np.mean(list(last.values()), axis=0) if last else 0.0
            news, count = np.zeros(LAYOUT.size)[elements], 0
            for one in come[start : start + size]:
                values = one.values[elements].astype(np.float64)
                if elements is LATE or not one.is_part:
                    news, count = news + values - last.get(one.worker, 0.0), count + 1
                    last[one.worker] = values
                else:
                    # What is kept of a worker is its last update, and that does not have the element.
                    last.pop(one.worker, None)
            if not count or not last:
                continue
            step = np.mean(list(last.values()), axis=0)
            if calibration is not None:
                step = before + calibration * news / count
            x[elements] += rate * min(1, count / len(last)) * step
    return x


@given(
    come=arrivals,
    size=st.integers(1, 4),
    calibration=st.sampled_from([None, 0.5, 1.0]),
    rate=st.sampled_from([0.25, 1.0]),
)
def test_a_kept_update_counts_in_the_elements_that_it_has(
    come: list[Arrival], size: int, calibration: float | None, rate: float
) -> None:
    strategy = strategy_of("ace", buffer_size=size, server_learning_rate=rate)
    if calibration is not None:
        strategy = strategy_of("ca2fl", buffer_size=size, server_learning_rate=rate, calibration=calibration)
    model = a_model_of(strategy)

    taken_in(model, come)

    expected = cached(come, size=size, rate=rate, calibration=calibration)
    np.testing.assert_allclose(model.vector, expected, rtol=1e-4, atol=1e-4)


@given(
    name=st.sampled_from([name for name, made in MADE.items() if made.keeping]),
    before=arrivals,
    after=arrivals,
)
def test_a_new_leader_goes_on_from_kept_parts_with_the_same_bits(
    name: str, before: list[Arrival], after: list[Arrival]
) -> None:
    model = a_model_of(MADE[name])
    taken_in(model, before)
    model.step()
    successor = taken_over(model)

    taken_in(model, after)
    taken_in(successor, after)

    assert model.vector.tobytes() == successor.vector.tobytes()
    assert model.statistics.tobytes() == successor.statistics.tobytes()


def test_the_statistics_of_a_part_are_averaged_with_those_that_have_them() -> None:
    model = a_model_of(a_strategy(buffer_size=2))
    ones = np.ones(7, np.float32)

    taken_in(model, [Arrival("a", ones, is_part=True), Arrival("b", ones, is_part=False)])

    # The updates say (1, 2, 3) and (2, 4, 6).
    assert model.statistics.tolist() == [2, 4, 4.5]
    assert model.integers == np.array([2, -2], "<i4").tobytes()


def test_the_record_says_which_share_of_the_model_an_update_has() -> None:
    model = a_model_of(a_strategy(buffer_size=2))

    taken_in(model, [Arrival("a", np.ones(7, np.float32), is_part=True)])

    record = published(model)
    assert [one.share for one in record.folded] == [3 / 7]
    assert record.contributors["a"].share == 3 / 7


def test_the_log_tells_that_a_robust_rule_does_not_move_the_first_layers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = a_strategy(rule="median", buffer_size=4, staleness="constant")
    config = a_config(strategy, first=a_model_of(strategy).record)
    arrived = [Arrival(f"w{number}", np.ones(7, np.float32), is_part=number > 1) for number in range(4)]
    server = a_server(config, *(an_arrived(one, 1, 0) for one in arrived))

    aggregate(server, config)

    assert newest(server, config).vector.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert "the first layers did not move: too few updates of the buffer have them" in caplog.text
    assert "rule median needs 3: raise --buffer-size" in caplog.text
