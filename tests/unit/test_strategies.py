"""The strategies: numbers by hand, a float64 reference, the known faults of other systems."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import builders
import numpy as np
import pytest
from builders import float32s
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fluffle import vector_math
from fluffle.model import Vector
from fluffle_aggregator.accumulators import Accumulator, RunningSum
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts
from fluffle_aggregator.transforms import Moments

SIZE = 7
# The others keep each worker's last update: test_cached_strategies.py.
PLAIN = tuple(name for name in STRATEGIES if not builders.a_strategy(name).keeping)


@dataclass(frozen=True)
class Update:
    """What fold is told of one update."""

    vector: Vector
    staleness: int = 0
    examples: int = 1


@dataclass(frozen=True)
class Run:
    """A strategy by name, the model that it starts from, and the updates that arrive."""

    name: str
    model: Vector
    updates: list[Update]

    def result(self, part: slice = slice(None)) -> Vector:
        """The last model, of this part of every vector."""
        updates = [Update(update.vector[part], update.staleness, update.examples) for update in self.updates]
        return aggregate(a_strategy(self.name, buffer_size=3), self.model[part], updates)


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def a_strategy(name: str, *, buffer_size: int = 1, mixing: float = 0.6, **settings: Any) -> Strategy:
    return builders.a_strategy(name, buffer_size=buffer_size, mixing=mixing, **settings)


def folded(
    strategy: Strategy, updates: Sequence[Update], accumulator: Accumulator | None = None
) -> Accumulator:
    accumulator = accumulator or strategy.rule.zero()
    for update in updates:
        facts = UpdateFacts(update.staleness, update.examples, max(one.examples for one in updates))
        accumulator = accumulator.adding(float32s(update.vector), strategy.weigh(facts))
    return accumulator


def step(
    strategy: Strategy, model: Vector, accumulator: Accumulator, moments: Moments | None = None
) -> Vector:
    strategy.step(model, accumulator, strategy.starting_moments(model.size) if moments is None else moments)
    return model


def aggregate(strategy: Strategy, model: Vector, updates: Sequence[Update]) -> Vector:
    """Fold updates into a copy of the model, step whenever the buffer is full, and flush what is left."""
    model = model.copy()
    moments = strategy.starting_moments(model.size)
    for start in range(0, len(updates), strategy.buffer_size):
        step(strategy, model, folded(strategy, updates[start : start + strategy.buffer_size]), moments)
    return model


def reference(run: Run, *, size: int, rate: float, s: Callable[[int], float]) -> NDArray[np.float64]:
    """The three formulas in float64; `rate` is alpha for FedAsync and eta for the others."""
    x = run.model.astype(np.float64)
    size = 1 if run.name == "fedasync" else size
    for start in range(0, len(run.updates), size):
        buffer = run.updates[start : start + size]
        vectors = [update.vector.astype(np.float64) for update in buffer]
        if run.name == "fedasync":
            a = rate * s(buffer[0].staleness)
            x = (1 - a) * x + a * vectors[0]
        elif run.name == "fedbuff":
            discounted = [s(update.staleness) * v for update, v in zip(buffer, vectors, strict=True)]
            x = x + rate * np.sum(discounted, axis=0) / len(buffer)
        else:
            x = x + rate * np.average(vectors, axis=0, weights=[update.examples for update in buffer])
    return x


vectors = arrays(np.float32, SIZE, elements=st.floats(-8.0, 8.0, width=32))
fresh_updates = st.builds(Update, vectors, st.just(0), st.integers(1, 10**6))
late_updates = st.builds(Update, vectors, st.integers(0, 50), st.integers(1, 10**6))


def runs_of(name: str) -> st.SearchStrategy[Run]:
    """FedAvg takes fresh updates only."""
    updates = st.lists(fresh_updates if name == "fedavg" else late_updates, min_size=1, max_size=8)
    return st.builds(Run, st.just(name), vectors, updates)


runs = st.sampled_from(PLAIN).flatmap(runs_of)
# test_fadas.py and test_fedac.py have the other references: a division by a second moment needs sums without
# cancellation.
runs_of_sums = st.sampled_from([name for name in PLAIN if name not in {"fadas", "fedac"}]).flatmap(runs_of)


@pytest.mark.parametrize(
    ("strategy", "updates", "expected"),
    [
        # 0.75 * 8 + 0.25 * 4, and with staleness 3 by alpha / sqrt(4): 0.875 * 8 + 0.125 * 4.
        (a_strategy("fedasync", mixing=0.25), [Update(vector(4))], 7),
        (a_strategy("fedasync", mixing=0.25), [Update(vector(4), 3)], 7.5),
        # 8 + 0.5 * (4 + 8 / sqrt(4)) / 2, and a buffer that is not full: 8 + (4 + 6) / 2.
        (
            a_strategy("fedbuff", buffer_size=2, learning_rate=0.5),
            [Update(vector(4)), Update(vector(8), 3)],
            10,
        ),
        (a_strategy("fedbuff", buffer_size=10), [Update(vector(4)), Update(vector(6))], 13),
        # 8 + (300 * 4 + 100 * 8) / 400.
        (a_strategy("fedavg", buffer_size=2), [Update(vector(4), 0, 300), Update(vector(8), 0, 100)], 13),
    ],
    ids=["fedasync", "fedasync, stale", "fedbuff", "fedbuff, partial", "fedavg"],
)
def test_the_next_model_is_the_one_computed_by_hand(
    strategy: Strategy, updates: list[Update], expected: float
) -> None:
    base = vector(8)

    model = aggregate(strategy, base, updates)

    assert model.tolist() == [expected]


@given(runs_of_sums, st.sampled_from([1, 3, 8]))
def test_a_strategy_agrees_with_its_formula_in_float64(run: Run, size: int) -> None:
    eta = 1.0 if run.name == "fedasync" else 0.7
    strategy = a_strategy(run.name, buffer_size=size, mixing=0.7, learning_rate=eta)

    result = aggregate(strategy, run.model, run.updates)

    expected = reference(run, size=size, rate=0.7, s=parse_discount("polynomial"))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-5)


@given(vectors, st.lists(fresh_updates, min_size=1, max_size=8))
def test_fedavg_on_a_full_cohort_is_the_mean_of_the_clients_models_weighted_by_examples(
    base: Vector, updates: list[Update]
) -> None:
    strategy = a_strategy("fedavg", buffer_size=len(updates))

    model = aggregate(strategy, base, updates)

    trained = [base.astype(np.float64) + update.vector for update in updates]
    mean = np.average(trained, axis=0, weights=[update.examples for update in updates])
    np.testing.assert_allclose(model, mean, rtol=1e-5, atol=1e-5)


@given(vectors, st.lists(late_updates, min_size=1, max_size=8), st.sampled_from([1.0, 0.3]))
def test_fedbuff_of_one_update_without_discount_is_plain_sgd_on_the_deltas(
    model: Vector, updates: list[Update], learning_rate: float
) -> None:
    strategy = a_strategy("fedbuff", buffer_size=1, staleness="constant", learning_rate=learning_rate)

    result = aggregate(strategy, model, updates)

    sgd = model.copy()
    for update in updates:
        sgd += np.float32(learning_rate) * update.vector
    # The sum begins at +0, so that a -0 of all comes out as +0.
    assert result.tolist() == sgd.tolist()


@given(
    st.sampled_from(["constant", "polynomial", "polynomial:3", "hinge", "hinge:1:0"]), st.integers(1, 10**6)
)
def test_a_fresh_update_is_never_discounted(staleness: str, examples: int) -> None:
    fedasync = a_strategy("fedasync", mixing=0.6, staleness=staleness)
    fedbuff = a_strategy("fedbuff", staleness=staleness)

    weights = [strategy.weigh(UpdateFacts(0, examples)).factor for strategy in (fedasync, fedbuff)]

    assert weights == [0.6, 1.0]


def test_the_mixing_weight_is_not_multiplied_into_itself_from_update_to_update() -> None:
    strategy = a_strategy("fedasync", mixing=0.5, staleness="polynomial")
    updates = [Update(vector(0), staleness=3)] * 20

    model = aggregate(strategy, vector(1), updates)

    assert model[0] == pytest.approx(0.75**20, rel=1e-5)  # a = 0.5 / sqrt(4) each time
    assert strategy.weigh(UpdateFacts(3, 1)).factor == 0.25


@given(st.integers(1, 1000))
def test_alpha_is_not_divided_by_the_number_of_clients_or_of_updates(count: int) -> None:
    strategy = a_strategy("fedasync", mixing=0.5, buffer_size=count)

    weight = strategy.weigh(UpdateFacts(0, count)).factor

    assert weight == 0.5


@pytest.mark.parametrize("name", ["fedbuff", "fedavg"])
def test_a_delta_is_added_as_it_came_whatever_the_model_is_now(name: str) -> None:
    strategy = a_strategy(name, buffer_size=2)
    updates = [Update(vector(1, 2)), Update(vector(3, 4))]

    moved = [aggregate(strategy, model, updates) - model for model in (vector(0, 0), vector(64, -32))]

    assert [move.tolist() for move in moved] == [[2, 3], [2, 3]]


@given(st.integers(1, 50))
def test_k_equal_deltas_move_the_model_by_one_of_them_not_by_their_sum(size: int) -> None:
    strategy = a_strategy("fedbuff", buffer_size=size, staleness="constant")

    model = aggregate(strategy, vector(1), [Update(vector(2))] * size)

    assert model.tolist() == [3]


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_staleness_that_all_updates_share_does_not_cancel(size: int, staleness: int) -> None:
    strategy = a_strategy("fedbuff", buffer_size=size, staleness="polynomial:1")

    model = aggregate(strategy, vector(0), [Update(vector(1), staleness=staleness)] * size)

    assert model[0] == pytest.approx(1 / (1 + staleness), rel=1e-5)


@given(runs, runs)
def test_the_same_updates_in_the_same_order_give_the_same_bits(run: Run, in_between: Run) -> None:
    first = run.result()

    in_between.result()
    again = run.result()

    assert again.tobytes() == first.tobytes()


@given(runs, st.integers(1, SIZE + 1))
def test_folding_is_independent_of_the_block_size(run: Run, block_size: int) -> None:
    whole = run.result()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_math, "BLOCK_SIZE", block_size)
        in_blocks = run.result()

    assert in_blocks.tobytes() == whole.tobytes()


@given(runs, st.integers(1, SIZE - 1))
def test_one_vector_is_aggregated_as_tensor_by_tensor(run: Run, cut: int) -> None:
    whole = run.result()

    tensors = run.result(slice(None, cut)), run.result(slice(cut, None))

    assert whole.tobytes() == tensors[0].tobytes() + tensors[1].tobytes()


@given(runs)
def test_a_view_of_a_messages_bytes_can_be_folded_and_stays_as_it_was(run: Run) -> None:
    messages = [update.vector.tobytes() for update in run.updates]
    views = [np.frombuffer(message, np.float32) for message in messages]
    received = [replace(update, vector=view) for update, view in zip(run.updates, views, strict=True)]

    result = Run(run.name, run.model, received).result()

    assert messages == [update.vector.tobytes() for update in run.updates]
    assert result.tobytes() == run.result().tobytes()


@pytest.mark.parametrize("name", PLAIN)
def test_an_updates_vector_is_not_kept(name: str) -> None:
    strategy = a_strategy(name, mixing=1.0)
    message = vector(1, 2, 3)
    buffer = folded(strategy, [Update(message)])

    message[:] = 99
    model = step(strategy, vector(0, 0, 0), buffer)

    assert model.tolist() == aggregate(strategy, vector(0, 0, 0), [Update(vector(1, 2, 3))]).tolist()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi", "adagrad"])
def test_memory_does_not_grow_with_the_number_of_updates(name: str, optimizer: str) -> None:
    strategy = a_strategy(name, buffer_size=100, optimizer="sgd" if name == "fedasync" else optimizer)
    model, update = (np.ones(16 * vector_math.BLOCK_SIZE, np.float32) for _ in range(2))
    moments = strategy.starting_moments(model.size)
    buffer = folded(strategy, [Update(update)])

    tracemalloc.start()
    if name != "fedasync":
        buffer = folded(strategy, [Update(update)] * 3, buffer)
    strategy.step(model, buffer, moments)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < model.nbytes / 4
    assert isinstance(buffer, RunningSum)
    assert buffer.total is not None
    assert buffer.total.dtype == np.float32


@pytest.mark.parametrize("name", ["fedbuff", "fedavg"])
def test_the_mean_delta_is_handed_to_the_server_optimizer(name: str) -> None:
    strategy = a_strategy(name, buffer_size=2, optimizer="momentum")
    buffer = folded(strategy, [Update(vector(2)), Update(vector(4))])

    moments = {"m": vector(10)}
    model = step(strategy, vector(100), buffer, moments)

    assert (model.tolist(), moments["m"].tolist()) == ([112], [12])  # m = 0.9 * 10 + 3


@pytest.mark.parametrize("name", PLAIN)
def test_an_empty_buffer_makes_no_model(name: str) -> None:
    strategy = a_strategy(name)

    with pytest.raises(ValueError, match="an empty buffer makes no new model"):
        step(strategy, vector(1), strategy.rule.zero())


@pytest.mark.parametrize("name", PLAIN)
def test_an_update_of_another_size_is_refused_and_changes_nothing(name: str) -> None:
    strategy = a_strategy(name, buffer_size=2)
    model, wrong = vector(1, 2, 3), folded(strategy, [Update(vector(9))])

    with pytest.raises(ValueError, match="must have one shape"):
        strategy.step(model, wrong, strategy.starting_moments(model.size))
    with pytest.raises(ValueError, match="must have one shape"):
        folded(strategy, [Update(vector(1, 2, 3)), Update(vector(9))])

    assert model.tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", PLAIN)
def test_the_moments_of_another_strategy_are_refused(name: str) -> None:
    strategy = a_strategy(name)

    own = ", ".join(strategy.moment_names) or "none"

    with pytest.raises(ValueError, match=f"the moments of {name} are {own}, not momentum of another"):
        strategy.step(vector(1), folded(strategy, [Update(vector(1))]), {"momentum of another": vector(0)})


def test_fedavg_refuses_an_update_of_another_version() -> None:
    strategy = a_strategy("fedavg")

    with pytest.raises(ValueError, match="not of staleness 1"):
        folded(strategy, [Update(vector(1), staleness=1)])


@pytest.mark.parametrize("name", PLAIN)
def test_an_update_without_examples_or_from_the_future_is_a_broken_promise(name: str) -> None:
    strategy = a_strategy(name)

    with pytest.raises(ValueError, match="at least 1 example, not 0"):
        strategy.weigh(UpdateFacts(0, 0))
    with pytest.raises(ValueError, match="staleness"):
        strategy.weigh(UpdateFacts(-1, 1))
