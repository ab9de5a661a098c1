"""Statistics, such as a BatchNormalization's moving variance: merged as values, and so never out of range."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from builders import a_model, a_strategy, a_version, an_update
from hypothesis import example, given
from hypothesis import strategies as st

from fluffle.compression import CODECS
from fluffle.model import Layout, TensorSpec
from fluffle.record import Rank
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts

LAYOUT = Layout(
    (TensorSpec("gamma", (2,), "float32"), TensorSpec("moving_variance", (3,), "float32", "statistic"))
)
# As they come from a sane batch normalization, and as they come from one whose data has gross outliers.
variances = st.lists(st.floats(0.0, 2.0**40, width=32), min_size=3, max_size=3)


@dataclass(frozen=True)
class Arrival:
    """One update: its variances, how many versions late it is, its examples, and which worker sent it."""

    variances: Sequence[float]
    lateness: int
    examples: int
    worker: str


arrivals = st.lists(
    st.builds(Arrival, variances, st.integers(0, 9), st.integers(1, 10_000), st.sampled_from("abc")),
    min_size=1,
    max_size=20,
)


def a_normalized_model(strategy: Strategy, statistics: Sequence[float]) -> GlobalModel:
    record = replace(a_version(layout=LAYOUT, values=[1.0, 1.0]), statistics=np.array(statistics, np.float32))
    return a_model(strategy, record=record)


def fold(model: GlobalModel, arrival: Arrival, sequence: int, codec: str = "float32") -> None:
    """Fold an update that started as late as it says, or as early as the history allows."""
    late = 0 if model.strategy.one_update_per_version else arrival.lateness
    update = an_update(
        arrival.worker,
        sequence,
        base_version=max(0, model.version - late),
        values=[0.1, -0.1],
        sends=model.strategy.sends,
        examples=arrival.examples,
        layout=LAYOUT,
        codec=codec if model.strategy.sends == "delta" else "float32",
    )
    model.fold(replace(update, statistics=np.array(arrival.variances, np.float32)), now=0.0)


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    name = draw(st.sampled_from(sorted(STRATEGIES)))
    return a_strategy(
        name,
        buffer_size=draw(st.integers(1, 5)),
        staleness=draw(st.sampled_from(["constant", "polynomial", "polynomial:3", "hinge:10:0"])),
        optimizer=draw(st.sampled_from(["sgd", "momentum", "adam", "yogi", "adagrad"])),
    )


@example(
    strategy=a_strategy("fedasync", staleness="polynomial"),
    codec="float32",
    first=[26014704.0, 0.0, 0.0],
    come=[Arrival([26014704.0, 0.0, 0.0], late, 1, "a") for late in (0, 1)],
)
@given(strategy=strategies(), codec=st.sampled_from(sorted(CODECS)), first=variances, come=arrivals)
def test_no_strategy_order_optimizer_or_codec_takes_a_variance_out_of_the_range_of_what_came(
    strategy: Strategy, codec: str, first: list[float], come: list[Arrival]
) -> None:
    model = a_normalized_model(strategy, first)

    for sequence, arrival in enumerate(come, start=1):
        fold(model, arrival, sequence, codec)
    model.step()

    seen = np.array([first, *(arrival.variances for arrival in come)], np.float32)
    assert np.all(model.statistics >= seen.min(axis=0))
    assert np.all(model.statistics <= seen.max(axis=0))


@given(staleness=st.sampled_from(["constant", "polynomial", "hinge:1:1"]), first=variances, come=arrivals)
def test_a_buffer_of_fedbuff_merges_as_the_formula_says(
    staleness: str, first: list[float], come: list[Arrival]
) -> None:
    strategy = a_strategy("fedbuff", buffer_size=len(come), staleness=staleness)
    model = a_normalized_model(strategy, first)
    model.version, model.terms = 9, (*model.terms, Rank(2, 0))

    for sequence, arrival in enumerate(come, start=1):
        fold(model, arrival, sequence)

    discounts = np.array([strategy.weigh(UpdateFacts(arrival.lateness, 1)).mixing for arrival in come])
    values = np.array([arrival.variances for arrival in come], np.float32).astype(np.float64)
    mean = (discounts[:, np.newaxis] * values).sum(axis=0) / discounts.sum()
    a = discounts.mean()
    expected = (1 - a) * np.array(first, np.float32) + a * mean
    # Below the smallest normal number float32 has fewer digits.
    np.testing.assert_allclose(model.statistics, expected, rtol=1e-6, atol=float(np.finfo(np.float32).tiny))


def test_fedasync_mixes_statistics_as_it_mixes_weights() -> None:
    model = a_normalized_model(a_strategy("fedasync", mixing=0.5, staleness="constant"), [1.0, 1.0, 1.0])

    fold(model, Arrival([0.0, 2.0, 1.0], 0, 10, "a"), 1)

    assert model.statistics.tolist() == [0.5, 1.5, 1.0]


def test_fedavg_takes_the_mean_of_its_cohort_weighted_by_examples() -> None:
    model = a_normalized_model(a_strategy("fedavg", buffer_size=2), [9.0, 9.0, 9.0])

    fold(model, Arrival([0.0, 4.0, 8.0], 0, 30, "a"), 1)
    fold(model, Arrival([4.0, 0.0, 8.0], 0, 10, "b"), 1)

    assert model.statistics.tolist() == [1.0, 3.0, 8.0]


def test_four_stale_updates_from_one_base_cannot_make_a_variance_negative() -> None:
    # As deltas: 1.0 + 4 * (0.2 - 1.0) = -2.2.
    model = a_normalized_model(a_strategy("fedasync", mixing=1.0, staleness="constant"), [1.0] * 3)

    for sequence in range(1, 5):
        fold(model, Arrival([0.2] * 3, sequence - 1, 10, "a"), sequence)

    assert model.statistics == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi", "adagrad"])
def test_a_server_optimizer_leaves_statistics_alone(optimizer: str) -> None:
    plain = a_normalized_model(a_strategy(buffer_size=1), [1.0] * 3)
    optimized = a_normalized_model(a_strategy(buffer_size=1, optimizer=optimizer), [1.0] * 3)

    for sequence in range(1, 9):
        for model in (plain, optimized):
            fold(model, Arrival([0.5, 0.1, 3.0], 0, 10, "a"), sequence)

    assert optimized.statistics.tolist() == plain.statistics.tolist()
    assert set(optimized.moments["v" if "v" in optimized.moments else "m"].shape) == {LAYOUT.size}
