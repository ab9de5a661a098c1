"""The leader with noise in each update: it counts what each worker says, and is free in all else."""

from dataclasses import replace

import pytest
from builders import an_update
from fake_broker import FakeBroker
from leading import (
    Clock,
    Trials,
    a_server,
    aggregate,
    die_with_a_message,
    newest,
    rejected,
    send,
    take_the_lead,
    versions,
    work_off,
)
from privately import a_privacy_plan, a_private_config

from fluffle.settings import load_settings
from fluffle.update import WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.settings import AggregatorSettings

PLAN = a_privacy_plan(updates=3, mechanism="local")


def told(worker: str, number: int, *, base: int = 0) -> WeightUpdate:
    """Return an update that says that its worker has sent so many."""
    return replace(an_update(worker, number, base_version=base), released=number)


@pytest.mark.parametrize("name", ["fedbuff", "fedavg", "reuse", "ace", "fadas"])
def test_each_strategy_that_takes_deltas_makes_of_them_what_it_makes_without_a_promise(name: str) -> None:
    given = [told("w1", 1), told("w2", 1), told("w3", 1), told("w4", 1)]
    config = a_private_config(PLAN, name=name)
    record = config.first_version()
    server = a_server(config, *given)

    aggregate(server, config)

    found = newest(server, config)
    assert found.updates >= 2
    assert found.vector.tolist() != record.vector.tolist()
    assert found.privacy is not None
    assert {each.updates for each in found.privacy.participations.values()} == {1}


def test_a_worker_may_have_two_updates_in_a_buffer_and_both_count() -> None:
    config = a_private_config(PLAN)
    server = a_server(config, told("w1", 1), told("w1", 2))

    aggregate(server, config)

    found = newest(server, config)
    assert rejected(server, config) == []
    assert found.privacy is not None
    assert (found.privacy.of("w1").updates, found.privacy.steps) == (2, 1)


def test_updates_that_are_refused_are_spent_too_and_cost_nothing_when_they_are_sent_again() -> None:
    config = a_private_config(PLAN, buffer_size=1)
    lost = replace(told("w1", 2), layout_digest="another model")
    server = a_server(config, told("w1", 1), lost, told("w1", 3))
    aggregate(server, config)
    state = newest(server, config).privacy
    assert state is not None
    assert state.of("w1").updates == 3

    # Such as `fluffle rejected requeue` sends it, of a run of its own.
    again = replace(told("w1", 2), id=replace(lost.id, run="another"))
    send(server, config, again)
    aggregate(server, config)

    assert [each["reason"] for each in rejected(server, config)] == ["wrong-layout"]
    found = newest(server, config)
    assert found.updates == 3
    assert found.privacy is not None
    assert found.privacy.of("w1").updates == 3


def test_more_than_was_promised_is_refused_whether_the_worker_says_so_or_not() -> None:
    config = a_private_config(PLAN, buffer_size=1)
    silent = [replace(told("w2", number), released=0) for number in range(1, 5)]
    server = a_server(config, told("w1", 4), *silent)

    aggregate(server, config)

    assert [each["reason"] for each in rejected(server, config)] == ["budget-spent", "budget-spent"]


def test_a_message_that_may_have_killed_aggregators_is_tried_and_counts_once() -> None:
    given = {"dp": "local", "dp_epsilon": 8, "dp_clip": 1, "dp_max_updates": 3, "strategy": "reuse"}
    settings = load_settings(AggregatorSettings, {**given, "initial_model": "elsewhere.safetensors"})
    config = a_private_config(PLAN, name="reuse", buffer_size=1)
    server = a_server(config, told("w1", 1))
    die_with_a_message(server, config, leaders=3)
    trials = Trials(settings)

    aggregate(server, replace(config, try_out=trials))

    assert set(trials.ended) == {""}
    found = newest(server, config).privacy
    assert found is not None
    assert found.of("w1").updates == 1


def test_the_federation_ends_when_all_have_sent_theirs_though_some_were_refused() -> None:
    config = a_private_config(PLAN, buffer_size=1, schedule=CommitSchedule(buffer_timeout_s=5))
    lost = replace(told("w1", 3), layout_digest="another model")
    server, clock = a_server(config, told("w1", 1), told("w1", 2), lost), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        for _ in range(3):
            clock.seconds += 6
            leader.tick()

    ended = "all workers have sent the 3 updates that the privacy budget allows"
    assert versions(server, config)[-1].finished == ended
