"""FedNova: updates that came from different numbers of local steps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import a_model, a_strategy, a_version, an_update, float32s
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from working import BATCHES, CountingTask

from fluffle.checked_task import CheckedTask
from fluffle.model import Vector
from fluffle.update import UpdateId
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts
from fluffle_worker.round import train_round

Come = Sequence[tuple[Vector, int, int]]
vectors = arrays(np.float32, 3, elements=st.floats(-8.0, 8.0, width=32))
arrivals = st.lists(st.tuples(vectors, st.integers(1, 100), st.integers(1, 50)), min_size=1, max_size=6)
NORMALIZING = ("fedbuff", "fedavg")


def moved(strategy: Strategy, come: Come) -> Vector:
    """Return what a buffer of deltas, each with its examples and its local steps, moves a model of zeros."""
    accumulator = strategy.rule.zero()
    for delta, examples, steps in come:
        facts = UpdateFacts(0, examples, most_examples=examples, steps=steps)
        accumulator = accumulator.adding(float32s(delta), strategy.weigh(facts))
    model = np.zeros(come[0][0].size, np.float32)
    strategy.step(model, accumulator, {})
    return model


@pytest.mark.parametrize("name", NORMALIZING)
@given(come=arrivals)
def test_the_mean_of_normalised_deltas_agrees_with_the_papers_formula_in_float64(
    name: str, come: list[tuple[Vector, int, int]]
) -> None:
    strategy = a_strategy(name, buffer_size=len(come), weigh_by="examples", normalize_steps=True)

    model = moved(strategy, come)

    # FedNova of Wang et al. with plain SGD: tau_eff * sum of p_i * d_i, d_i = delta_i / tau_i.
    p = np.array([examples for _, examples, _ in come]) / sum(examples for _, examples, _ in come)
    tau = np.array([steps for _, _, steps in come])
    d = np.array([delta.astype(np.float64) / steps for delta, _, steps in come])
    np.testing.assert_allclose(model, (p @ tau) * (p @ d), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean"])
@given(come=arrivals.filter(lambda come: len(come) >= 3), steps=st.integers(1, 10**6))
def test_equal_numbers_of_steps_give_the_bits_of_no_normalisation(
    rule: str, come: list[tuple[Vector, int, int]], steps: int
) -> None:
    equal = [(delta, examples, steps) for delta, examples, _ in come]

    normalised, plain = (
        moved(a_strategy("fedbuff", buffer_size=len(come), rule=rule, normalize_steps=on), equal)
        for on in (True, False)
    )

    assert normalised.tobytes() == plain.tobytes()


def test_a_median_compares_what_a_site_moved_in_one_step() -> None:
    strategy = a_strategy("fedbuff", buffer_size=3, rule="median", normalize_steps=True)
    come = [(np.array([delta], np.float32), 1, steps) for delta, steps in ((1.0, 1), (4.0, 2), (9.0, 3))]

    model = moved(strategy, come)

    # 1, 2 and 3 in one step, and 2 steps in the mean.
    assert model.tolist() == [4.0]


@pytest.mark.parametrize(("normalize_steps", "reached"), [(False, 10 / 11), (True, 0.5)])
def test_sites_of_different_numbers_of_steps_meet_at_the_optimum_only_when_normalised(
    normalize_steps: bool, reached: float
) -> None:
    """The paper's example: losses (x - e_i)^2 / 2 with e = 0 and 1, whose sum is least at 0.5.

    With 1 and 10 small steps, plain averaging settles where the losses times their steps are least: 10 / 11.
    """
    strategy = a_strategy("fedavg", buffer_size=2, normalize_steps=normalize_steps)
    model = a_model(strategy, record=a_version())
    model.vector[:] = 0
    rate, sites = 1e-3, (("a", 0.0, 1), ("b", 1.0, 10))

    for number in range(1, 2001):
        base, version = model.vector.astype(np.float64), model.version
        for worker, optimum, steps in sites:
            x = optimum + (base - optimum) * (1 - rate) ** steps
            update = an_update(worker, number, base_version=version, values=list(x - base), steps=steps)
            model.fold(replace(update, base_term=model.record.term), now=0.0)

    assert model.vector == pytest.approx([reached] * 4, abs=0.01)


def test_the_steps_of_an_update_reach_its_weight() -> None:
    model = a_model(a_strategy("fedbuff", buffer_size=2, normalize_steps=True))

    weight = model.weigh(an_update("a", 1, steps=7))

    assert weight.steps == 7


def test_an_update_says_how_many_minibatches_its_round_had() -> None:
    task = CheckedTask(CountingTask())
    first = task.model()
    flat = first.layout.flatten(first.weights)
    version = replace(a_version(layout=first.layout), vector=flat.vector, integers=flat.integers)
    seen: list[tuple[int, int]] = []

    trained = train_round(
        task,
        version,
        {},
        update_id=UpdateId("a", "r1", 1),
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert trained.update.steps == BATCHES == len(seen)
