"""Rules over a buffer: median and trimmed mean against float64 references, and what they hold in memory."""

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import (
    SIZE,
    a_config,
    a_layout,
    a_model,
    a_strategy,
    a_vector,
    a_version,
    an_update,
    float32s,
    refusal,
)
from fake_broker import FakeBroker
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from leading import Clock, a_server, aggregate, newest, take_the_lead, work_off
from numpy.typing import NDArray

from fluffle.compression import compress, decompressed
from fluffle.errors import ConfigError
from fluffle.model import Layout, TensorSpec, Vector
from fluffle.plan import Plan
from fluffle.vector_math import BLOCK_SIZE
from fluffle_aggregator.accumulators import Stack
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.rules import parse_rule
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts

vectors = arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32))
buffers = st.lists(st.tuples(vectors, st.integers(0, 20), st.integers(1, 1000)), min_size=1, max_size=9)
Come = Sequence[tuple[Vector, int, int]]


def delta_of(strategy: Strategy, come: Come, codec: str = "float32") -> Vector:
    held, random = strategy.rule.zero(), np.random.default_rng(0)
    for vector, staleness, examples in come:
        held = held.adding(compress(codec, vector, random), strategy.weigh(UpdateFacts(staleness, examples)))
    return held.close()


def discounted(come: Come) -> NDArray[np.float64]:
    return np.array([vector.astype(np.float64) * (1 + staleness) ** -0.5 for vector, staleness, _ in come])


@given(come=buffers)
def test_the_median_of_a_buffer_is_the_median_of_the_discounted_deltas_in_float64(come: Come) -> None:
    found = delta_of(a_strategy(rule="median", buffer_size=9), come)

    np.testing.assert_array_equal(found, np.median(discounted(come), axis=0).astype(np.float32))


@given(come=buffers, share=st.sampled_from([0.05, 0.2, 1 / 3, 0.49]))
def test_the_trimmed_mean_drops_a_share_of_the_largest_and_of_the_smallest_values(
    come: Come, share: float
) -> None:
    found = delta_of(a_strategy(rule=f"trimmed-mean:{share}", buffer_size=9), come)

    dropped = min(math.ceil(round(share * len(come), 6)), (len(come) - 1) // 2)
    rows = np.sort(discounted(come), axis=0)[dropped : len(come) - dropped]
    np.testing.assert_allclose(found, rows.sum(axis=0) / len(rows), rtol=2e-7, atol=1e-30)


@given(shuffled=buffers.flatmap(lambda come: st.tuples(st.just(come), st.permutations(come))))
def test_the_order_of_arrivals_does_not_show_in_the_bits(shuffled: tuple[Come, Come]) -> None:
    for rule in ("median", "trimmed-mean:0.3"):
        one, other = (delta_of(a_strategy(rule=rule, buffer_size=9), come) for come in shuffled)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean:0.2"])
@pytest.mark.parametrize("strategy", ["fedbuff", "fedavg"])
def test_one_outlier_of_five_moves_no_element_beyond_what_honest_updates_say(
    rule: str, strategy: str
) -> None:
    config = a_config(a_strategy(strategy, buffer_size=5, rule=rule))
    honest = [an_update(f"h{n}", values=[1.0 + n / 10] * SIZE) for n in range(4)]
    outlier = an_update("outlier", values=[-1e9, 1e9, 0.0, -1e9], examples=1_000_000)

    server = a_server(config, *honest[:2], outlier, *honest[2:])
    aggregate(server, config)

    version = newest(server, config)
    assert version.updates == 5
    assert np.all(version.vector >= 1.0)
    assert np.all(version.vector <= 1.3)


def test_a_robust_rule_keeps_an_outlier_out_of_the_statistics_too() -> None:
    kernel, variances = a_layout().tensors[0], TensorSpec("norm/variance", (1,), "float32", "statistic")
    record = replace(a_version(layout=Layout((kernel, variances))), statistics=a_vector(1.0))
    model = a_model(a_strategy(rule="median", buffer_size=3, staleness="constant"), record=record)
    for worker, variance in (("a", 2.0), ("b", 1e9), ("c", 4.0)):
        update = an_update(worker)
        model.fold(replace(update, statistics=a_vector(variance)), now=0.0)

    assert model.statistics.tolist() == [4.0]


def test_vectors_are_held_compressed_and_whole_ones_exist_block_by_block_only() -> None:
    size, count = 16 * BLOCK_SIZE, 8
    strategy = a_strategy(rule="median", buffer_size=count)
    random = np.random.default_rng(0)
    sent = compress("int8", random.normal(size=size).astype(np.float32), random)

    tracemalloc.start()
    held = strategy.rule.zero()
    for _ in range(count):
        held = held.adding(sent, strategy.weigh(UpdateFacts(0, 1)))
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    delta = held.close()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert isinstance(held, Stack)
    assert held_bytes < count * 1.01 * len(sent.payload) + 100_000
    # The delta itself, and `count` blocks in float64, which the median copies once.
    assert peak_bytes - held_bytes < delta.nbytes + 4 * 8 * count * BLOCK_SIZE
    np.testing.assert_array_equal(delta, decompressed(sent))


def test_an_update_in_a_larger_codec_than_the_plan_asks_for_is_refused_while_vectors_are_held() -> None:
    strategy = a_strategy(rule="median", buffer_size=3)
    record = a_version(layout=a_layout(1000), values=[0.0] * 1000)
    model = GlobalModel(record, strategy=strategy, plan=Plan(codec="int8"), goal=Goal(), term=1)
    in_plan = an_update(values=[1.0] * 1000, codec="int8", layout=record.layout)
    before = an_update(values=[1.0] * 1000, layout=record.layout)

    assert refusal(in_plan, model) is None
    refused = refusal(before, model)
    assert refused is not None
    assert refused.reason == "wrong-content"
    assert "came in float32, and rule median holds updates in int8" in refused.detail


@pytest.mark.parametrize(
    ("given", "is_enough"),
    [
        ({"rule_memory": 1.0}, False),
        ({"rule_memory": 4.0}, True),
        ({"rule_memory": 1.1, "codec": "int8"}, True),
        ({"rule_memory": 1.1, "codec": "int8", "limit_norm": 5.0, "on_large_norm": "clip"}, False),
    ],
)
def test_a_buffer_that_would_take_more_memory_than_allowed_is_refused_at_the_start(
    given: dict[str, object], is_enough: bool
) -> None:
    settings = AggregatorSettings.model_validate(
        {"strategy": "fedbuff", "rule": "median", "buffer_size": 4, **given}
    )
    strategy = settings.make_strategy()
    if is_enough:
        settings.require_room(strategy, a_layout(2**18))
        return
    with pytest.raises(ConfigError, match=r"holds 4 updates of 262144 values in float32, 4 MiB, .* allows 1"):
        settings.require_room(strategy, a_layout(2**18))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("krum", "must be one of mean, trimmed-mean"),
        ("median:3", "too many parameters"),
        ("trimmed-mean:0.5", "share above 0 and below 0.5"),
        ("trimmed-mean:0", "share above 0"),
        ("trimmed-mean:x", "share must be a number"),
    ],
)
def test_a_rule_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_rule(text)


def test_an_empty_stack_makes_no_delta() -> None:
    with pytest.raises(ValueError, match="an empty buffer makes no new model"):
        parse_rule("median").zero().close()


def test_a_vector_that_is_held_does_not_change_with_the_message_that_it_came_in() -> None:
    message = a_vector(1, 2, 3)
    strategy = a_strategy(rule="median", buffer_size=3)
    held = strategy.rule.zero().adding(float32s(message), strategy.weigh(UpdateFacts(0, 1)))

    message[:] = 99

    assert held.close().tolist() == [1, 2, 3]


TOO_FEW = "rule median tells no outlier from fewer than 3 updates: averaging them"


def test_a_buffer_too_small_to_tell_an_outlier_is_averaged_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedule, clock = CommitSchedule(buffer_timeout_s=60), Clock()
    config = a_config(a_strategy(rule="median", buffer_size=3), commit_schedule=schedule)
    server = a_server(config, an_update("w"))
    with FakeBroker(server) as broker:
        leading = take_the_lead(broker, config, clock)
        work_off(leading, broker)
        clock.seconds = 61
        leading.tick()

    assert newest(server, config).updates == 1
    assert TOO_FEW in caplog.text


def test_a_version_made_early_because_the_head_lost_one_has_the_same_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedule, clock = CommitSchedule(every=2), Clock()
    config = a_config(a_strategy(rule="median", buffer_size=3), commit_schedule=schedule)
    # A step that is not published yet, and two updates more: the newest version cannot be published again.
    server = a_server(config, *(an_update("w", number) for number in range(1, 6)))
    with FakeBroker(server) as broker:
        leading = take_the_lead(broker, config, clock)
        work_off(leading, broker)
        assert TOO_FEW not in caplog.text

        server.queue(config.topology.head.name).ready.clear()
        for _ in range(2):
            clock.seconds += 60
            leading.look_after_head()

    assert newest(server, config).updates == 5
    assert TOO_FEW in caplog.text
