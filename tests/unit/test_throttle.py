"""Throttling: a worker that repeats before the others have come counts less."""

from dataclasses import replace

import numpy as np
import pytest
from builders import a_model, a_strategy, a_version, an_update
from hypothesis import given
from hypothesis import strategies as st

from fluffle_aggregator.strategies.strategy import UpdateFacts
from fluffle_aggregator.throttle import repeats

windows = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0])), max_size=20)


def sent_by(workers: str) -> list[tuple[str, float]]:
    return [(worker, 1.0) for worker in workers]


@pytest.mark.parametrize(
    ("window", "expected"),
    [("", 0), ("aaaa", 0), ("b", 0), ("ba", 1), ("ab", 0), ("bcab", 1), ("bca", 1), ("cbaa", 2), ("aacb", 0)],
)
def test_a_worker_repeats_if_it_is_among_the_last_updates_as_many_as_there_are_others(
    window: str, expected: int
) -> None:
    assert repeats("a", sent_by(window)) == expected


@given(st.integers(1, 10), st.integers(0, 50))
def test_workers_that_take_turns_never_repeat(workers: int, rounds: int) -> None:
    window = [(str(number % workers), 1.0) for number in range(rounds * workers)][-50:]

    assert repeats("0", window) == 0


@given(windows)
def test_a_worker_repeats_less_often_than_there_are_workers(window: list[tuple[str, float]]) -> None:
    assert 0 <= repeats("a", window) <= len({sender for sender, weight in window if weight} - {"a"})


@given(windows)
def test_refused_updates_are_not_counted(window: list[tuple[str, float]]) -> None:
    assert repeats("a", window) == repeats("a", [one for one in window if one[1]])


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_a_repeat_counts_less_by_a_power_of_the_setting(name: str) -> None:
    plain, throttled = (a_strategy(name, throttle=throttle) for throttle in (1.0, 1.5))

    first, third = (throttled.weigh(UpdateFacts(3, 1, repeats=number)) for number in (0, 2))

    assert first == plain.weigh(UpdateFacts(3, 1))
    assert third.factor == pytest.approx(first.factor / 1.5**2)
    assert third.divisor == first.divisor


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_a_successor_throttles_as_the_leader_would_have(name: str) -> None:
    strategy = a_strategy(name, buffer_size=1, throttle=1.5, staleness="constant")
    model = a_model(strategy, record=a_version())
    for number, worker in enumerate("abcaab", start=1):
        model.fold(an_update(worker, number, base_version=model.version, sends=strategy.sends), now=0.0)

    successor = a_model(strategy, record=replace(model.next_record(now=0.0), vector=model.vector.copy()))
    following = an_update("a", 7, base_version=model.version, sends=strategy.sends)

    assert successor.weigh(following) == model.weigh(following)
    assert model.weigh(following).discount == pytest.approx(1 / 1.5)
    for one in (model, successor):
        one.fold(following, now=0.0)
    assert np.array_equal(model.vector, successor.vector)
    assert model.window == successor.window
