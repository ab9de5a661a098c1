"""ACE and CA2FL: the papers' pseudocode in float64, the known faults, forgetting, and a new leader."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from arrivals import Arrival, fold, mean_of, moments_of, strategy_of, taken_over
from builders import SIZE, a_config, a_layout, a_model, a_strategy, a_version, an_update, float32s
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from leading import a_server, aggregate, newest, send, unacked
from numpy.typing import NDArray

from fluffle.errors import MessageTooLarge
from fluffle.message_size import require_cache_fits
from fluffle.model import Vector
from fluffle.policy_watch import policy_watch_of
from fluffle.record import Contributor
from fluffle.safetensors_file import ModelFile
from fluffle.topology import MIB
from fluffle_aggregator import leading as leading_module
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.initial_model import InitialModel
from fluffle_aggregator.running import config_of
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.update_cache import Keeping, UpdateCache
from fluffle_cli.simulate.in_memory import LeaderInMemory
from fluffle_cli.simulate.settings import SimulateSettings

Float64s = NDArray[np.float64]
NAMES = ("ace", "ca2fl")
WORKERS = ("a", "b", "c")


vectors = arrays(np.float32, SIZE, elements=st.floats(-8.0, 8.0, width=32))
arrivals = st.lists(
    st.builds(Arrival, st.sampled_from(WORKERS), vectors, st.integers(1, 1000)), min_size=1, max_size=12
)


def ace(come: Sequence[Arrival], *, rate: float, by_examples: bool) -> Float64s:
    """ACE with one update in a step: x <- x + (rate / n) * mean of the newest update of each worker."""
    x, last = np.zeros(SIZE), {}
    for arrival in come:
        last[arrival.worker] = arrival
        weights = [each.examples if by_examples else 1 for each in last.values()]
        mean = np.average([each.values.astype(np.float64) for each in last.values()], axis=0, weights=weights)
        x = x + rate / len(last) * mean
    return x


def ca2fl(come: Sequence[Arrival], *, size: int, rate: float, calibration: float) -> Float64s:
    """CA2FL, with those workers in the mean that have sent something; one may come twice in a buffer.

    In the paper the calibration is 1.
    """
    x, last = np.zeros(SIZE), dict[str, Float64s]()
    for start in range(0, len(come) - len(come) % size, size):
        mean = np.mean(list(last.values()), axis=0) if last else np.zeros(SIZE)
        calibrated = np.zeros(SIZE)
        for arrival in come[start : start + size]:
            values = arrival.values.astype(np.float64)
            calibrated += values - last.get(arrival.worker, 0.0)
            last[arrival.worker] = values
        x = x + rate * min(1.0, size / len(last)) * (mean + calibration * calibrated / size)
    return x


@given(arrivals, st.sampled_from([0.25, 1.0]), st.booleans())
def test_ace_is_the_papers_rule_with_a_step_for_each_worker(
    come: list[Arrival], rate: float, by_examples: bool
) -> None:
    weigh_by = "examples" if by_examples else "none"
    model = a_model(strategy_of("ace", server_learning_rate=rate, weigh_by=weigh_by))

    fold(model, come)

    expected = ace(come, rate=rate, by_examples=by_examples)
    # Each sum of float32 is rounded, and what a worker sent before is taken out of it again.
    np.testing.assert_allclose(model.vector, expected, rtol=1e-4, atol=1e-3)


@given(arrivals, st.integers(1, 4), st.sampled_from([0.25, 1.0]), st.sampled_from([0.3, 1.0, 1.5]))
def test_ca2fl_is_the_papers_rule_with_a_part_of_the_calibration(
    come: list[Arrival], size: int, rate: float, calibration: float
) -> None:
    model = a_model(
        strategy_of("ca2fl", buffer_size=size, server_learning_rate=rate, calibration=calibration)
    )

    fold(model, come)

    expected = ca2fl(come, size=size, rate=rate, calibration=calibration)
    np.testing.assert_allclose(model.vector, expected, rtol=1e-4, atol=1e-3)


@given(st.lists(vectors, min_size=3, max_size=3), arrivals)
def test_ca2fl_that_calibrates_by_a_share_for_each_worker_is_ace(
    first: list[Vector], come: list[Arrival]
) -> None:
    # Once all workers are known and all weigh the same: h + (delta_i - h_i) / n is the mean afterwards.
    models = [a_model(strategy_of("ace")), a_model(strategy_of("ca2fl", calibration=1 / len(WORKERS)))]
    moves = []
    for model in models:
        fold(model, [Arrival(worker, values) for worker, values in zip(WORKERS, first, strict=True)])
        before = model.vector.copy()
        fold(model, [replace(each, examples=1) for each in come])
        moves.append(model.vector - before)

    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-4, atol=1e-3)


def test_ca2fl_calibrates_from_the_second_update_of_a_worker_on() -> None:
    # Public code never fills its list of those that it has heard, so that the calibration is always zero.
    model = a_model(strategy_of("ca2fl"))

    fold(model, [Arrival("a", np.full(SIZE, 8, np.float32)), Arrival("b", np.full(SIZE, 2, np.float32))])
    before = model.vector.copy()
    fold(model, [Arrival("a", np.full(SIZE, 4, np.float32))])

    # Half of the mean of 8 and 2, and of what is new of a: 4 - 8.
    assert (model.vector - before).tolist() == [(5 - 4) / 2] * SIZE


def test_a_fast_worker_counts_no_more_than_a_slow_one() -> None:
    model = a_model(strategy_of("ace"))
    fast, slow = np.full(SIZE, 1, np.float32), np.full(SIZE, -1, np.float32)

    fold(model, [Arrival("fast", fast), Arrival("slow", slow)])
    before = model.vector.copy()
    fold(model, [Arrival("fast", fast)] * 50)

    assert model.vector.tolist() == before.tolist()


@pytest.mark.parametrize("name", [*NAMES, "ringleader"])
@pytest.mark.parametrize(("weigh_by", "shares"), [("none", [1, 1 / 2, 1 / 2]), ("examples", [1, 1, 2 / 5])])
def test_an_update_moves_the_statistics_by_its_share_of_all_workers(
    name: str, weigh_by: str, shares: list[float]
) -> None:
    # With the statistics of whoever came last, a network with BatchNormalization knew one site's data only.
    given = {"weigh_by": weigh_by} | ({} if name == "ringleader" else {"buffer_size": 1})
    strategy = STRATEGIES[name].model_validate(given).make()
    model = a_model(strategy)
    found = []
    for worker, sequence, examples in (("a", 1, 10), ("b", 1, 40), ("a", 2, 20)):
        update = an_update(worker, sequence, base_version=model.version, examples=examples)
        found.append(model.weigh(update).mixing)
        model.fold(update, now=0.0)

    assert found == pytest.approx(shares)


@pytest.mark.parametrize("name", [*NAMES, "reuse"])
@pytest.mark.parametrize("codec", ["float32", "int8"])
@given(come=arrivals, at=st.integers(0, 12))
def test_a_leader_that_takes_over_goes_on_with_the_same_bits(
    name: str, codec: str, come: list[Arrival], at: int
) -> None:
    strategy = strategy_of(name, codec=codec, buffer_size=1 if name == "ace" else 2)
    undisturbed, before = a_model(strategy), a_model(strategy)
    for model in (undisturbed, before):
        fold(model, come[:at])
        # A record has no update that is still in the buffer.
        model.step()
    after = taken_over(before)

    fold(undisturbed, come[at:])
    fold(after, come[at:])

    assert after.vector.tobytes() == undisturbed.vector.tobytes()
    assert moments_of(after) == moments_of(undisturbed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (strategy_of("ace"), a_strategy("fedbuff")),
        (strategy_of("ace"), a_strategy("fedbuff", optimizer="adam")),
        (strategy_of("ace"), strategy_of("ace", codec="int8")),
        (a_strategy("fedbuff", optimizer="adam"), strategy_of("ca2fl")),
    ],
    ids=["to none", "to adam", "to another codec", "from adam"],
)
def test_the_cache_of_another_strategy_begins_anew_and_says_so(before: Strategy, after: Strategy) -> None:
    model = a_model(before)
    fold(model, [Arrival("a", np.ones(SIZE, np.float32))] * before.buffer_size)

    found = taken_over(model, after)

    assert found.begins_anew
    assert found.cache is None or not found.cache.kept()
    assert all(not found.moments[name].any() for name in found.moments if name != "v")


@pytest.mark.parametrize(("before", "after"), [("ace", "ca2fl"), ("ca2fl", "reuse"), ("reuse", "ace")])
def test_ace_ca2fl_and_reuse_go_on_with_each_others_updates(before: str, after: str) -> None:
    model = a_model(strategy_of(before))
    fold(model, [Arrival("a", np.ones(SIZE, np.float32))])

    found = taken_over(model, strategy_of(after))

    assert not found.begins_anew
    assert found.cache is not None
    assert [each.worker for each in found.cache.kept()] == ["a"]


def test_a_worker_that_has_left_is_forgotten() -> None:
    model = a_model(strategy_of("ace", forget_after=5))
    ones = np.ones(SIZE, np.float32)
    fold(model, [Arrival("gone", -ones), Arrival("here", ones)])
    assert model.forgotten.take(model.cache, model.contributors) == []

    fold(model, [Arrival("here", ones)] * 10)

    assert model.forgotten.take(model.cache, model.contributors) == [
        ("gone", "11 updates of others have come since it")
    ]
    assert model.forgotten.take(model.cache, model.contributors) == []
    assert model.cache is not None
    assert mean_of(model.cache).tolist() == [1] * SIZE
    # What counts of a worker is its last update, so that "share of weight" says who counts how much now.
    assert {name: one.weight_sum for name, one in model.contributors.items()} == {"gone": 0.0, "here": 1.0}


def test_workers_for_which_there_is_no_room_are_told_of_once() -> None:
    model = a_model(strategy_of("ace"))
    assert isinstance(model.cache, UpdateCache)
    model.cache = UpdateCache(Keeping(), SIZE, most_workers=1)
    ones = np.ones(SIZE, np.float32)

    fold(model, [Arrival(name, ones) for name in ("a", "b", "a", "b")])

    assert {worker for worker, _ in model.forgotten.take(model.cache, model.contributors)} == {"a", "b"}
    fold(model, [Arrival(name, ones) for name in ("a", "b")])
    assert model.forgotten.take(model.cache, model.contributors) == []


def test_with_more_workers_than_fit_into_a_message_the_longest_kept_is_forgotten() -> None:
    cache = UpdateCache(Keeping("float32"), SIZE, most_workers=2)
    for number, worker in enumerate(WORKERS):
        cache.replace(worker, float32s(np.full(SIZE, number, np.float32)), 1.0, number)

    assert list(cache.updates) == ["b", "c"]
    assert mean_of(cache).tolist() == [1.5] * SIZE
    assert [worker for worker, _ in cache.forgotten] == ["a"]


def test_room_for_the_cache_is_counted_with_the_vectors_beside_it() -> None:
    strategy = strategy_of("ca2fl")
    model = GlobalModel(
        a_version(),
        strategy=strategy,
        plan=a_model().plan,
        goal=Goal(),
        term=1,
        cached_bytes=strategy.moments_bytes(SIZE, workers=2) - strategy.moments_bytes(SIZE, workers=0),
    )

    fold(model, [Arrival(worker, np.ones(SIZE, np.float32)) for worker in WORKERS])

    assert model.cache is not None
    assert [each.worker for each in model.cache.kept()] == ["b", "c"]


def test_a_cache_that_does_not_fit_into_a_message_is_refused_with_its_size() -> None:
    layout = a_version().layout
    said = r"what ace keeps of no more than two workers in float32.* 40 MiB.*at most 16.*cache_codec int8"
    with pytest.raises(MessageTooLarge, match=said):
        require_cache_fits(layout, 40 * MIB, "ace", "float32", 16 * MIB)
    with pytest.raises(MessageTooLarge, match="choose the strategy fedbuff, which keeps nothing"):
        require_cache_fits(layout, 40 * MIB, "ace", "int8", 16 * MIB)


def test_a_leader_that_finds_the_cache_of_another_strategy_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ace, adam = a_config(strategy_of("ace")), a_config(a_strategy(buffer_size=1, optimizer="adam"))
    server = a_server(ace, an_update("w", 1, values=[1.0] * SIZE))
    aggregate(server, ace)
    assert "the strategy begins anew" not in caplog.text

    send(server, adam, an_update("w", 2, base_version=1, values=[1.0] * SIZE))
    aggregate(server, adam)

    assert "the strategy begins anew: what lies beside the newest version" in caplog.text
    assert newest(server, adam).version == 2
    assert unacked(server, adam) == []


@pytest.mark.parametrize(
    ("strategy", "workers", "large_bytes", "times"),
    [
        # A worker's update takes 16 bytes, and so does a version.
        (strategy_of("ace"), 3, 30, 1),
        (strategy_of("ace"), 3, 48, 0),
        (strategy_of("ace"), 1, 0, 0),
        (a_strategy("fedbuff", buffer_size=1), 3, 0, 0),
    ],
    ids=["large", "small", "no larger than a version", "nothing kept"],
)
def test_a_leader_warns_once_when_what_is_kept_is_large(
    strategy: Strategy, workers: int, large_bytes: int, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = a_config(strategy)
    updates = [an_update(f"w{number % workers}", 1 + number // workers) for number in range(2 * workers)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leading_module, "LARGE_BYTES", large_bytes)
        aggregate(a_server(config, *updates), config)

    assert caplog.text.count("publish less often with --commit-every, or choose --strategy fedbuff") == times


def test_a_takeover_with_more_workers_than_fit_into_a_message_goes_on() -> None:
    settings = AggregatorSettings.model_validate({"name": "a1", "strategy": "ace", "max_message_mib": 1})
    config = config_of(settings, policy_watch_of(settings, None), InitialModel())
    layout = a_layout(100_000)
    workers = {f"w{number}": Contributor(updates=1, examples=1) for number in range(50)}
    record = replace(a_version(layout=layout, values=[0.0] * layout.size), contributors=workers)

    model = config.continue_from(Head(record, None, "", 1, messages=1))

    # 1 MiB has room for ten updates in int8.
    assert model.cache is not None
    for number in range(12):
        vector = float32s(np.ones(layout.size, np.float32))
        model.cache.replace(f"w{number}", vector, 1.0, number)
    assert len(model.cache) == 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"strategy": "ace", "server_optimizer": "momentum"},
            "what ace keeps of no more than two workers in int8",
        ),
        ({"strategy": "ca2fl", "cache_codec": "float32"}, "in float32, .*choose cache_codec int8, or the"),
        ({"strategy": "fadas"}, "the moments of fadas .*the strategy fedbuff"),
        (
            {"strategy": "fedbuff", "server_optimizer": "adam"},
            "the moments of adam .*choose another FLUFFLE_SERVER_OPTIMIZER",
        ),
    ],
)
def test_the_simulator_refuses_a_model_that_an_aggregator_would_refuse(
    given: dict[str, object], said: str
) -> None:
    settings = SimulateSettings.model_validate({"task": "digits", **given})
    # A version takes 400 MB, and a message at most 512 MiB.
    file = ModelFile(a_layout(100_000_000), {})

    with pytest.raises(MessageTooLarge, match=said):
        LeaderInMemory(settings, file, lambda _version: None)


def test_a_kept_update_survives_its_message() -> None:
    cache = UpdateCache(Keeping("float32"), SIZE)
    message = np.ones(SIZE, np.float32)
    cache.replace("a", float32s(message), 1.0, 1)

    message[:] = 99
    cache.replace("a", float32s(np.full(SIZE, 3, np.float32)), 1.0, 2)

    assert mean_of(cache).tolist() == [3] * SIZE
