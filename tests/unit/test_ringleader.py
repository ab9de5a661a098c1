"""Ringleader: the rounds of the paper in float64, workers that join and leave, and a new leader."""

from collections.abc import Sequence

import numpy as np
import pytest
from arrivals import Arrival, fold, moments_of, taken_over
from builders import SIZE, a_model, a_version
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy

Float64s = NDArray[np.float64]
WORKERS = ("a", "b", "c")
vectors = arrays(np.float32, SIZE, elements=st.floats(-8.0, 8.0, width=32))
arrivals = st.lists(st.builds(Arrival, st.sampled_from(WORKERS), vectors, st.integers(1, 9)), max_size=24)


def ringleader(codec: str = "float32", **settings: object) -> Strategy:
    given = {"cache_codec": codec, "weigh_by": "none", **settings}
    return STRATEGIES["ringleader"].model_validate(given).make()


def moves(model: GlobalModel, come: Sequence[Arrival]) -> list[float]:
    """Fold updates, and return how far each has moved the first element."""
    found = []
    for arrival in come:
        before = float(model.vector[0])
        fold(model, [arrival])
        found.append(float(model.vector[0]) - before)
    return found


def sends(*workers: str, value: float = 1.0) -> list[Arrival]:
    return [Arrival(worker, np.full(SIZE, value, np.float32)) for worker in workers]


class Table:
    """G_i and b_i of each worker, in float64, with the weights of its updates."""

    def __init__(self) -> None:
        self.sums: dict[str, Float64s] = {}
        self.weights: dict[str, list[float]] = {}

    def add(self, worker: str, values: Vector, weight: float) -> None:
        self.sums[worker] = self.sums.get(worker, np.zeros(SIZE)) + weight * values.astype(np.float64)
        self.weights.setdefault(worker, []).append(weight)

    def mean(self) -> Float64s:
        means = [self.sums[each] / np.sum(self.weights[each]) for each in WORKERS]
        return np.average(means, axis=0, weights=[np.mean(self.weights[each]) for each in WORKERS])


def reference(come: Sequence[Arrival], *, rate: float, by_examples: bool) -> Float64s:
    """Ringleader's two phases, with a fixed set of workers.

    Phase 1 adds to the table until it has an entry of each worker. Phase 2 makes a step with the last of
    them, and then one with the next arrival of each other worker; the rest goes to the table of the next
    round.
    """
    x, table, later = np.zeros(SIZE), Table(), Table()
    waiting = set[str]()
    for arrival in come:
        worker, values = arrival.worker, arrival.values
        weight = float(arrival.examples) if by_examples else 1.0
        if waiting and worker not in waiting:
            later.add(worker, values, weight)
            continue
        table.add(worker, values, weight)
        if waiting:
            waiting.remove(worker)
        elif table.sums.keys() == set(WORKERS):
            waiting = set(WORKERS) - {worker}
        else:
            continue
        x = x + rate / len(WORKERS) * table.mean()
        if not waiting:
            table, later = later, Table()
    return x


def a_known_model(strategy: Strategy) -> GlobalModel:
    """Return a model that has heard each worker, at the start of a round, and has not moved yet."""
    model = a_model(strategy)
    # The first makes a round of its own; the next round is of all three.
    fold(model, sends(*WORKERS, *WORKERS, value=0.0))
    return model


@given(arrivals, st.sampled_from([0.25, 1.0]), st.booleans())
def test_ringleader_makes_the_rounds_of_the_paper(
    come: list[Arrival], rate: float, by_examples: bool
) -> None:
    weigh_by = "examples" if by_examples else "none"
    model = a_known_model(ringleader(server_learning_rate=rate, weigh_by=weigh_by))

    fold(model, come)

    expected = reference(come, rate=rate, by_examples=by_examples)
    np.testing.assert_allclose(model.vector, expected, rtol=1e-4, atol=1e-3)


def test_the_model_stands_still_until_each_worker_has_sent_an_update_and_then_moves_once_with_each() -> None:
    model = a_known_model(ringleader())

    found = moves(model, sends("a", "a", "a", "b", "c", "a", "a", "b", "a", "b"))

    third = pytest.approx(1 / 3)
    #                a  a  a  b  c      a      a  b      a  b
    assert found == [0, 0, 0, 0, third, third, 0, third, 0, 0]
    # Each update made a version all the same.
    assert model.version == 16


def test_repeats_of_a_fast_worker_count_in_its_own_mean_and_not_more_than_another_worker() -> None:
    model = a_known_model(ringleader())

    found = moves(model, [*sends("a", value=1.0), *sends("a", value=2.0), *sends("b", "c", value=0.0)])

    assert found[-1] == pytest.approx((1.5 + 0 + 0) / 3 / 3)


def test_a_new_worker_takes_part_from_the_next_round_on() -> None:
    model = a_known_model(ringleader())

    found = moves(model, sends("a", "new", "b", "c"))
    # c completed the round: four workers are in it, and each has one step.
    more = moves(model, sends("a", "b", "new"))

    assert found == [0, 0, 0, pytest.approx(1 / 4)]
    assert more == [pytest.approx(1 / 4)] * 3


def test_a_worker_that_has_left_is_waited_for_until_it_is_forgotten() -> None:
    model = a_known_model(ringleader(forget_after=3))

    found = moves(model, sends(*["a", "b"] * 6))

    assert found[:8] == [0] * 8
    assert any(found[8:])
    assert [worker for worker, _ in model.forgotten.take(model.cache, model.contributors)] == ["c"]
    assert model.cache is not None
    assert {each.worker for each in model.cache.kept()} == {"a", "b"}


def test_the_log_names_a_worker_for_which_the_model_stands_still() -> None:
    model = a_known_model(ringleader(forget_after=100))
    assert model.cache is not None
    told = []

    for number in range(1, 61):
        moves(model, sends("ab"[number % 2]))
        told += model.cache.take_waits()

    assert told == [("c", 15), ("c", 30), ("c", 60)]


def test_nothing_is_said_of_a_slow_worker_for_which_no_round_waits() -> None:
    model = a_known_model(ringleader(forget_after=100))

    moves(model, sends(*["a", "b", "a", "b", "c"] * 12))

    assert model.cache is not None
    assert model.cache.take_waits() == []


@pytest.mark.parametrize("codec", ["float32", "int8"])
@given(come=arrivals, at=st.integers(0, 24))
def test_a_leader_that_takes_over_goes_on_with_the_same_bits(
    codec: str, come: list[Arrival], at: int
) -> None:
    strategy = ringleader(codec, forget_after=3)
    undisturbed, before = a_model(strategy), a_model(strategy)
    for model in (undisturbed, before):
        fold(model, come[:at])
    after = taken_over(before)

    fold(undisturbed, come[at:])
    fold(after, come[at:])

    assert not after.begins_anew
    assert after.vector.tobytes() == undisturbed.vector.tobytes()
    assert moments_of(after) == moments_of(undisturbed)


@pytest.mark.parametrize(("before", "after"), [("ace", "ringleader"), ("ringleader", "ca2fl")])
def test_rounds_do_not_go_on_with_a_cache_that_knows_none(before: str, after: str) -> None:
    model = a_model(STRATEGIES[before].model_validate({"cache_codec": "float32"}).make())
    fold(model, sends("a", "b", "a", "b"))
    model.step()

    found = taken_over(model, STRATEGIES[after].model_validate({"cache_codec": "float32"}).make())

    assert found.begins_anew
    assert found.cache is not None
    assert not found.cache.kept()


def test_with_more_workers_than_fit_into_a_message_the_longest_unheard_is_forgotten() -> None:
    strategy = ringleader()
    room = strategy.moments_bytes(SIZE, workers=2) - strategy.moments_bytes(SIZE, workers=0)
    model = GlobalModel(
        a_version(), strategy=strategy, plan=a_model().plan, goal=Goal(), term=1, cached_bytes=room
    )

    fold(model, sends("a", "b", "c", "c", "b"))

    assert [worker for worker, _ in model.forgotten.take(model.cache, model.contributors)] == ["a"]
    # Two of each worker, which is what fits.
    assert strategy.moments_bytes(SIZE, workers=1) - strategy.moments_bytes(SIZE, workers=0) == 2 * 4 * SIZE
