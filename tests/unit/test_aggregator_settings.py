"""What an aggregator makes of its settings."""

import pytest
from builders import a_strategy

from fluffle.errors import ConfigError
from fluffle.policy_watch import policy_watch_of
from fluffle.settings import load_settings
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.initial_model import InitialModel
from fluffle_aggregator.running import config_of
from fluffle_aggregator.settings import AggregatorSettings


def settings(**given: object) -> AggregatorSettings:
    return AggregatorSettings.model_validate({"name": "a1", **given})


def config(**given: object) -> AggregatorConfig:
    chosen = settings(**given)
    return config_of(chosen, policy_watch_of(chosen, None), InitialModel())


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"strategy": "fedasync", "commit_every": 5}, 5),
        ({"strategy": "fedbuff", "buffer_size": 4, "commit_every": 3}, 12),
        ({"strategy": "fedavg", "buffer_size": 8}, 8),
        ({"strategy": "fedasync", "commit_after": 2.0}, 100),
    ],
)
def test_the_prefetch_has_room_for_a_whole_commit_two_evaluations_and_one_more(
    given: dict[str, object], held: int
) -> None:
    assert config(**given).prefetch == held + 3


def test_rounds_that_workers_wait_for_are_published_one_by_one() -> None:
    with pytest.raises(ConfigError, match="commit_every must be 1, not 2"):
        config(strategy="fedavg", commit_every=2)

    config(strategy="fedavg")


def test_seconds_alone_say_when_to_commit() -> None:
    by_time = config(strategy="fedasync", commit_after=10).commit_schedule
    by_both = config(strategy="fedasync", commit_after=10, commit_every=3).commit_schedule

    assert not by_time.is_due(1, since_commit_s=9.9)
    assert by_time.is_due(1, since_commit_s=10)
    assert by_both.is_due(3, since_commit_s=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "a b"}, "--name must be 1 to 100 letters"),
        ({"target": "nonsense"}, "--target must read like 0.95"),
        ({"staleness": "cubic"}, "--staleness must be one of constant, polynomial"),
        (
            {"codec": "zip"},
            "--codec must be one of float32, bfloat16, int8, topk, topk:SHARE (0.0001 to 0.5), each",
        ),
    ],
)
def test_a_wrong_setting_is_named_by_where_it_was_written(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(AggregatorSettings, given)

    assert str(refused.value).startswith(said)


def test_fedasync_needs_whole_weights_and_so_no_codec_that_leaves_out() -> None:
    leaving_out = settings(strategy="fedasync", codec="topk:0.05")

    with pytest.raises(ConfigError, match=r"codec topk:0.05 .* choose float32, bfloat16 or int8, or"):
        leaving_out.make_plan(leaving_out.make_strategy())


def test_no_limit_is_on_until_it_is_set() -> None:
    limits = config().limits

    assert {name: getattr(limits, name) for name in Limits.model_fields} == Limits().model_dump()


def test_every_limit_that_is_set_has_a_gate() -> None:
    given = {"limit_messages": 3, "limit_mib": 1.5, "limit_share": 0.5, "limit_examples": 9, "limit_norm": 10}

    chosen = config(**given, on_large_norm="clip", strategy="fedbuff")

    gates = gates_of(chosen.limits, a_strategy(), chosen.topology)
    assert len(gates) == len(gates_of(Limits(), a_strategy(), chosen.topology)) + 2
    assert chosen.limits.limit_examples == 9


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strategy": "fedavg", "limit_share": 0.5}, "limit_share has no effect with fedavg.*limit_examples"),
        ({"strategy": "reuse", "limit_share": 0.5}, "limit_share has no effect with reuse.*its last update"),
        ({"on_large_norm": "clip"}, "on_large_norm clip needs limit_norm"),
    ],
)
def test_limits_that_do_not_go_with_the_rest_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**given)
