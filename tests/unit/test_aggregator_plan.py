"""A leader with another plan than its predecessor: the workers learn of it at once."""

import pytest
from builders import SIZE, a_config, a_strategy, an_update
from leading import a_server, aggregate, newest, rejected, send, versions

from fluffle.settings import load_arguments
from fluffle_aggregator.settings import AggregatorSettings


def test_a_new_plan_is_published_with_the_same_model_before_any_update_comes() -> None:
    before, after = a_config(a_strategy("fedbuff")), a_config(a_strategy("fedasync"))
    server = a_server(before)

    aggregate(server, after)

    assert [version.rank for version in versions(server, after)] == sorted(
        version.rank for version in versions(server, after)
    )
    assert newest(server, after).plan.sends == "weights"
    assert newest(server, after).version == 0
    assert newest(server, after).vector.tolist() == newest(server, before).vector.tolist()


def test_an_update_for_the_old_plan_is_refused_and_one_for_the_new_plan_applied() -> None:
    before, after = a_config(a_strategy("fedbuff")), a_config(a_strategy("fedasync"))
    server = a_server(before, an_update("old", sends="delta"))
    aggregate(server, after)

    send(server, after, an_update("new", values=[1] * SIZE, sends="weights"))
    aggregate(server, after)

    assert [line["reason"] for line in rejected(server, after)] == ["wrong-content"]
    assert newest(server, after).version == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_staleness": 4}, 4),
        ({}, None),
        ({"strategy": "fedavg"}, 0),
        ({"strategy": "fedavg", "max_staleness": 4}, 0),
    ],
)
def test_the_plan_tells_the_workers_how_late_an_update_may_be(
    given: dict[str, object], expected: int | None
) -> None:
    settings = load_arguments(AggregatorSettings, given)

    assert settings.make_plan(settings.make_strategy()).max_staleness == expected


def test_the_same_plan_is_not_published_again() -> None:
    config = a_config()
    server = a_server(config)

    aggregate(server, config)

    assert len(versions(server, config)) == 1
