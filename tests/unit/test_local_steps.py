"""FedNova: updates that came from different numbers of local steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from builders import a_model, a_version, an_update, passed, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from working import BATCHES, CountingTask

from fluffle.checked_task import CheckedTask
from fluffle.model import Vector
from fluffle.record import Contributor
from fluffle.update import UpdateId
from fluffle_aggregator.gates.gate import Incoming
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.local_steps import MOST_TIMES_MEDIAN, UsualSteps
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_worker.round import train_round

# A delta, its examples, and its local steps.
Come = Sequence[tuple[Vector, int, int]]
vectors = arrays(np.float32, 4, elements=st.floats(-8.0, 8.0, width=32))
arrivals = st.lists(st.tuples(vectors, st.integers(1, 100), st.integers(1, 50)), min_size=1, max_size=6)
OF_DELTAS = sorted(set(STRATEGIES) - {"fedasync"})


def a_normalising_model(name: str, count: int, known: Sequence[int] = (), **others: object) -> GlobalModel:
    """Return a model of zeros whose workers w0, w1 and so on have made so many steps in their last rounds."""
    given: dict[str, object] = {"buffer_size": count, "weigh_by": "examples", "normalize_steps": True}
    kind = STRATEGIES[name]
    chosen = {key: value for key, value in (given | others).items() if key in kind.model_fields}
    contributors = {f"w{at}": Contributor(local_work=steps) for at, steps in enumerate(known)}
    record = replace(a_version(), contributors=contributors)
    return a_model(kind.model_validate(chosen).make(), record=record)


def fold(model: GlobalModel, come: Come) -> Vector:
    """Fold deltas, one of each worker, and return where the model is then."""
    for at, (delta, examples, steps) in enumerate(come):
        update = an_update(f"w{at}", values=delta.tolist(), examples=examples, steps=steps)
        model.fold(update, now=0.0)
    return model.vector


@pytest.mark.parametrize(("name", "weigh_by"), [("fedbuff", "none"), ("fedavg", "examples")])
@given(come=arrivals)
@settings(max_examples=40)
def test_the_mean_of_normalised_deltas_agrees_with_the_papers_formula_in_float64(
    name: str, weigh_by: str, come: list[tuple[Vector, int, int]]
) -> None:
    known = [steps for _, _, steps in come]
    moved = fold(a_normalising_model(name, len(come), known, weigh_by=weigh_by), come)

    # FedNova of Wang et al. with plain SGD: tau_eff * sum of p_i * d_i, d_i = delta_i / tau_i.
    counts = np.array([examples if name == "fedavg" else 1 for _, examples, _ in come])
    p = counts / counts.sum()
    tau = np.array([steps for _, _, steps in come], np.float64)
    usual = np.minimum(tau, MOST_TIMES_MEDIAN * sorted(tau)[len(tau) // 2]).mean()
    d = np.array([delta.astype(np.float64) / steps for delta, _, steps in come])
    np.testing.assert_allclose(moved, usual * (p @ d), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", OF_DELTAS)
@given(come=arrivals, steps=st.integers(1, 10**6))
@settings(max_examples=20)
def test_equal_numbers_of_steps_give_the_bits_of_no_normalisation(
    name: str, come: list[tuple[Vector, int, int]], steps: int
) -> None:
    equal = [(delta, examples, steps) for delta, examples, _ in come]

    normalised, plain = (
        fold(a_normalising_model(name, len(come), normalize_steps=on), equal) for on in (True, False)
    )

    assert normalised.tobytes() == plain.tobytes()


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@given(come=arrivals.filter(lambda come: len(come) >= 3), steps=st.integers(1, 10**6))
@settings(max_examples=20)
def test_so_they_do_when_the_updates_of_a_buffer_are_compared(
    rule: str, come: list[tuple[Vector, int, int]], steps: int
) -> None:
    equal = [(delta, examples, steps) for delta, examples, _ in come]

    normalised, plain = (
        fold(a_normalising_model("fedbuff", len(come), rule=rule, normalize_steps=on), equal)
        for on in (True, False)
    )

    assert normalised.tobytes() == plain.tobytes()


def test_a_median_compares_what_a_site_moved_in_one_step() -> None:
    come = [(np.full(4, delta, np.float32), 1, steps) for delta, steps in ((1.0, 1), (4.0, 2), (9.0, 3))]

    moved = fold(a_normalising_model("fedbuff", 3, [1, 2, 3], rule="median"), come)

    # 1, 2 and 3 in one step, and 2 steps in the mean.
    assert moved.tolist() == [4.0] * 4


@pytest.mark.parametrize("name", ["reuse", "ace", "ca2fl", "ringleader"])
def test_kept_updates_are_kept_as_those_of_the_usual_number_of_steps(name: str) -> None:
    model = a_normalising_model(name, 1, [2, 6], cache_codec="float32")

    fold(model, [(np.full(4, 1.0, np.float32), 10, 2), (np.full(4, 3.0, np.float32), 10, 6)])

    kept = {
        each.worker: float(next(each.vector.blocks())[0])
        for each in model.moments_at(model.record.rank).cached
    }
    assert kept == {"w0": 2.0, "w1": 2.0}


@pytest.mark.parametrize("name", ["fedavg", "fedbuff", "reuse", "ace"])
@pytest.mark.parametrize(("normalize_steps", "reached"), [(False, 10 / 11), (True, 0.5)])
def test_sites_of_different_numbers_of_steps_meet_at_the_optimum_only_when_normalised(
    name: str, normalize_steps: bool, reached: float
) -> None:
    """The paper's example: losses (x - e_i)^2 / 2 with e = 0 and 1, whose sum is least at 0.5.

    With 1 and 10 small steps, plain averaging settles where the losses times their steps are least: 10 / 11.
    """
    kind = STRATEGIES[name]
    model = a_model(
        kind.model_validate({"buffer_size": 2, "normalize_steps": normalize_steps}).make(), record=a_version()
    )
    rate, sites = 1e-2, (("a", 0.0, 1), ("b", 1.0, 10))

    for number in range(1, 201):
        base, version = model.vector.astype(np.float64), model.version
        for worker, optimum, steps in sites:
            x = optimum + (base - optimum) * (1 - rate) ** steps
            update = an_update(worker, number, base_version=version, values=list(x - base), steps=steps)
            model.fold(replace(update, base_term=model.record.term), now=0.0)

    assert model.vector == pytest.approx([reached] * 4, abs=0.03)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0.1, 1000.0)), min_size=1))
def test_what_is_usual_is_the_mean_of_all_workers_last_numbers(come: list[tuple[str, float]]) -> None:
    usual, last = UsualSteps(), dict[str, float]()

    for worker, steps in come:
        usual.replace(last.get(worker, 0.0), steps)
        last[worker] = steps

    most = MOST_TIMES_MEDIAN * sorted(last.values())[len(last) // 2]
    expected = mean(min(each, most) for each in last.values())
    assert usual.scale(2.0) == pytest.approx(expected / 2, rel=1e-9)
    # The next leader has them from the record, in another order.
    assert UsualSteps([0.0, *reversed(last.values())]).scale(2.0) == usual.scale(2.0)


def test_a_worker_that_claims_a_billion_steps_changes_little_for_the_others() -> None:
    honest: Mapping[str, int] = {f"w{at}": 10 for at in range(8)}

    scale = UsualSteps([*honest.values(), 10**9]).scale(10)

    assert 1 <= scale < 3


def test_an_update_that_claims_few_steps_is_limited_by_what_it_would_move() -> None:
    model = a_normalising_model("fedbuff", 100)
    for number in range(1, 21):
        model.fold(an_update("w0", number, steps=50), now=0.0, norm=2.0)
    limits = Limits(limit_norm=10)

    honest, liar = (an_update("w1", 1, steps=steps) for steps in (50, 1))

    assert isinstance(passed(honest, model, limits), Incoming)
    found = refusal(liar, model, limits)
    assert found is not None
    assert (found.reason, "by a norm of 100;" in found.detail) == ("large-norm", True)


def test_an_update_that_would_overflow_once_it_is_scaled_is_refused() -> None:
    model = a_normalising_model("fedbuff", 100)
    model.fold(an_update("w0", 1, steps=1000), now=0.0)

    found = refusal(an_update("w1", 1, values=[2.0**45] * 4, steps=1), model)

    assert found is not None
    assert found.reason == "too-large"


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
