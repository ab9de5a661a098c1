"""Weights by examples: the formulas of FedBuff and FedAsync against a float64 reference."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import a_config, a_model, a_strategy, a_version, an_update, float32s
from hypothesis import given
from hypothesis import strategies as st
from leading import a_server, aggregate, newest, rejected

from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.strategies.strategy import EXAMPLE_WEIGHTS, UpdateFacts

examples = st.integers(1, 100_000)
stalenesses = st.integers(0, 20)


@given(
    weigh_by=st.sampled_from(sorted(EXAMPLE_WEIGHTS)),
    come=st.lists(st.tuples(examples, stalenesses, st.floats(-10, 10, width=32)), min_size=1, max_size=9),
    average=st.floats(0, 1e6),
)
def test_fedbuff_divides_by_what_fresh_updates_of_sites_of_average_size_at_least_would_weigh(
    weigh_by: str, come: Sequence[tuple[int, int, float]], average: float
) -> None:
    strategy = a_strategy("fedbuff", weigh_by=weigh_by, buffer_size=len(come))
    accumulator = strategy.rule.zero()

    for count, staleness, delta in come:
        vector = np.full(3, delta, np.float32)
        weight = strategy.weigh(UpdateFacts(staleness, count, mean_examples=average))
        accumulator = accumulator.adding(float32s(vector), weight)
    model = np.full(3, 7.0, np.float32)
    strategy.step(model, accumulator, {})

    counts = np.array([float(count) for count, _, _ in come])
    power = {"none": 0.0, "sqrt": 0.5, "examples": 1.0}[weigh_by]
    sizes, at_least = counts**power, np.maximum(counts, average) ** power
    discounts = np.array([(1 + staleness) ** -0.5 for _, staleness, _ in come])
    deltas = np.array([delta for _, _, delta in come])
    expected = 7.0 + (sizes * discounts * deltas).sum() / at_least.sum()
    assert model == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(
    weigh_by=st.sampled_from(sorted(EXAMPLE_WEIGHTS)), count=examples, most=examples, staleness=stalenesses
)
def test_fedasync_mixes_in_less_of_a_site_with_fewer_examples_and_never_more_than_the_paper(
    weigh_by: str, count: int, most: int, staleness: int
) -> None:
    strategy = a_strategy("fedasync", weigh_by=weigh_by)

    weight = strategy.weigh(UpdateFacts(staleness, count, most)).factor

    share = count / max(count, most)
    expected = {"none": 1.0, "sqrt": share**0.5, "examples": share}[weigh_by]
    assert weight == pytest.approx(0.5 * (1 + staleness) ** -0.5 * expected)
    assert weight <= 0.5


def test_small_sites_alone_make_a_small_step_of_fedbuff_and_the_mean_outlives_a_takeover() -> None:
    strategy = a_strategy("fedbuff", weigh_by="examples", buffer_size=1)
    model = a_model(strategy, record=a_version())
    for worker, count in (("large", 30), ("tiny", 10)):
        model.fold(an_update(worker, 1, base_version=model.version, examples=count), now=0.0)
    before = model.vector.copy()

    following = an_update("tiny", 2, base_version=model.version, examples=10)
    successor = a_model(strategy, record=replace(a_version(2), contributors=dict(model.contributors)))
    model.fold(following, now=0.0)

    # The mean of the two is 20, of which 10 are a half.
    assert model.vector - before == pytest.approx(0.5)
    assert successor.weigh(following).divisor == 20


def test_the_largest_site_is_the_yardstick_of_fedasync_and_forgotten_when_it_shrinks() -> None:
    strategy = a_strategy("fedasync", weigh_by="examples")
    model = a_model(strategy, record=a_version())
    weights = []

    for sequence, (worker, count) in enumerate([("a", 100), ("b", 10), ("a", 20), ("b", 10)], start=1):
        update = an_update(worker, sequence, base_version=model.version, sends="weights", examples=count)
        weights.append(model.fold(update, now=0.0).weight)

    assert weights == pytest.approx([0.5, 0.05, 0.1, 0.25])


def test_a_tiny_fast_site_weighs_as_little_as_its_examples_say() -> None:
    config = a_config(a_strategy("fedbuff", weigh_by="examples", buffer_size=4))
    tiny = [an_update("tiny", n, values=[1000.0] * 4, examples=3) for n in (1, 2, 3)]
    server = a_server(config, *tiny, an_update("large", 1, values=[0.0] * 4, examples=1497))

    aggregate(server, config)

    record = newest(server, config)
    # Counted alike, it would be 750.
    assert record.vector.tolist() == pytest.approx([1000 * 9 / 1506] * 4)
    assert {name: one.weight_sum for name, one in record.contributors.items()} == {"tiny": 9, "large": 1497}


def test_an_update_of_too_few_examples_is_refused_with_the_setting() -> None:
    config = a_config(limits=Limits(min_examples=20))
    server = a_server(config, an_update("tiny", examples=19), an_update("a", examples=20))

    aggregate(server, config)

    [refusal] = rejected(server, config)
    assert refusal["reason"] == "bad-examples"
    assert "claims 19 examples; expected 20 to 1000000000 (min_examples" in str(refusal["detail"])


def fedasync_windows(*workers: str, share: float = 0.5) -> tuple[list[str], list[str]]:
    """Return whose updates a share-limited FedAsync applies, and whose it refuses."""
    config = a_config(a_strategy("fedasync", weigh_by="none"), limits=Limits(limit_share=share))
    updates = [an_update(worker, n, sends="weights") for n, worker in enumerate(workers, start=1)]
    server = a_server(config, *updates)
    aggregate(server, config)
    refused = [str(line["worker"]) for line in rejected(server, config)]
    assert {line["reason"] for line in rejected(server, config)} <= {"over-share"}
    given = newest(server, config).contributors
    return [name for name, one in given.items() for _ in range(one.updates)], refused


def test_a_share_is_counted_over_the_last_updates_of_fedasync() -> None:
    applied, refused = fedasync_windows(*("a" * 9 + "b" + "a" * 8))

    # Alone, a may do what it likes; beside b it has more than three quarters.
    assert applied.count("a") == 9
    assert refused == ["a"] * 8


def test_a_worker_whose_neighbours_have_left_is_not_held_up_for_ever() -> None:
    applied, refused = fedasync_windows(*("ab" * 5 + "a" * 80))

    assert refused
    assert applied.count("a") > 20


def test_equal_workers_are_never_refused_for_their_share() -> None:
    _, refused = fedasync_windows(*("abcd" * 20), share=0.1)

    assert refused == []
