"""A sealed sum that was encrypted anew: asked for in time, once, and never in the way of updates."""

from dataclasses import replace

import pytest
from builders import a_strategy
from fake_broker import FakeBroker
from leading import (
    Clock,
    a_server,
    aggregate,
    newest,
    send,
    take_the_lead,
    unacked,
    work_off,
)
from sealed_leading import EXACT, fill, refusals
from sealing import (
    a_refresh,
    a_sealed_config,
    a_sealed_plan,
    a_sealed_update,
    opened,
)

from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.sealed.plan import ASKED_FOR_VERSIONS, SealedPlan
from fluffle_aggregator.leader import REFUSALS_TOLD_AFTER_S


def narrow(versions_to_the_end: float, *, greatest: int = 64) -> SealedPlan:
    """A plan whose range is used up after so many versions."""
    plan = a_sealed_plan(greatest=greatest)
    return replace(plan, clip=LARGEST_VALUE / plan.divisor / versions_to_the_end)


def test_a_refresh_is_asked_once_half_of_the_range_is_used_and_makes_room() -> None:
    config = a_sealed_config(narrow(10.0))
    server = a_server(config)

    fill(server, config, first=1, count=4)
    before = newest(server, config)
    fill(server, config, first=5, count=2)
    asking = newest(server, config)
    send(server, config, a_refresh(asking, "w2", 100))
    aggregate(server, config)

    after = newest(server, config)
    assert before.sealed is not None
    assert asking.sealed is not None
    assert after.sealed is not None
    assert (before.sealed.asked, asking.sealed.asked) == ("", "w2")
    assert after.version == asking.version + 1
    assert opened(after) == pytest.approx(opened(asking), abs=EXACT)
    assert after.sealed_sum != asking.sealed_sum
    assert (after.sealed.refreshes, after.sealed.asked) == (1, "")
    plan = config.first_version().plan.sealed
    assert plan is not None
    # The values of this sum are far below what clips and weights allow.
    assert after.sealed.bound(plan) < asking.sealed.bound(plan) / 100
    assert refusals(server, config) == []


def test_updates_need_not_stop_while_a_refresh_is_on_its_way() -> None:
    config = a_sealed_config(narrow(10.0))
    server = a_server(config)
    fill(server, config, first=1, count=6)
    asking = newest(server, config)

    fill(server, config, first=7, count=2)
    before = newest(server, config)
    send(server, config, a_refresh(asking, "w2", 100))
    aggregate(server, config)

    after = newest(server, config)
    assert after.sealed is not None
    assert opened(after) == pytest.approx(opened(before), abs=EXACT)
    assert (after.sealed.weights, after.sealed.counted_from) == (8 * 128, 6 * 128)


def test_a_second_refresh_of_the_same_sum_is_refused_and_one_that_comes_twice_counts_once() -> None:
    config = a_sealed_config(narrow(10.0))
    server = a_server(config)
    fill(server, config, first=1, count=6)
    asking = newest(server, config)

    refresh = a_refresh(asking, "w2", 100)
    send(server, config, refresh, refresh, a_refresh(asking, "w1", 100))
    aggregate(server, config)

    assert [reason for reason, _ in refusals(server, config)] == ["late-refresh"] * 2
    assert opened(newest(server, config)) == pytest.approx(opened(asking), abs=EXACT)


def test_a_refresh_beside_updates_in_the_buffer_comes_with_their_version() -> None:
    config = a_sealed_config(narrow(10.0))
    server = a_server(config)
    fill(server, config, first=1, count=6)
    asking = newest(server, config)
    one, other = (
        replace(a_sealed_update(worker, 50, base_version=asking.version), base_term=asking.term)
        for worker in ("w1", "w2")
    )
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        send(server, config, one, a_refresh(asking, "w2", 100))
        work_off(leader, broker)
        assert newest(server, config).version == asking.version
        send(server, config, other)
        work_off(leader, broker)

    after = newest(server, config)
    assert after.version == asking.version + 1
    assert after.sealed is not None
    assert after.sealed.refreshes == 1
    assert opened(after) == pytest.approx([value + 1.0 for value in opened(asking)], abs=EXACT)
    assert unacked(server, config) == []


def test_a_leader_that_dies_with_a_refresh_loses_nothing() -> None:
    config = a_sealed_config(narrow(10.0))
    server = a_server(config)
    fill(server, config, first=1, count=6)
    asking = newest(server, config)
    send(server, config, a_refresh(asking, "w2", 100))
    with FakeBroker(server) as broker:
        broker.consume(config.topology.updates.name, prefetch=config.prefetch)
        assert broker.next_delivery(0) is not None

    aggregate(server, config)

    after = newest(server, config)
    assert after.sealed is not None
    assert after.sealed.refreshes == 1
    assert opened(after) == pytest.approx(opened(asking), abs=EXACT)


def test_a_refresh_that_does_not_come_is_asked_of_the_next_worker() -> None:
    config = a_sealed_config(narrow(40.0))
    server = a_server(config)

    fill(server, config, first=1, count=21)
    asked = [newest(server, config)]
    fill(server, config, first=22, count=ASKED_FOR_VERSIONS)
    asked.append(newest(server, config))

    assert [each.sealed.asked for each in asked if each.sealed] == ["w2", "w1"]
    # What was asked of the first one still counts when it comes late.
    send(server, config, a_refresh(asked[0], "w2", 100))
    aggregate(server, config)
    after = newest(server, config).sealed
    assert after is not None
    assert (after.refreshes, after.asked) == (1, "")


def test_the_range_is_never_left_and_a_refresh_lets_updates_in_again() -> None:
    config = a_sealed_config(narrow(4.0))
    server, clock = a_server(config), Clock()
    plan = config.first_version().plan.sealed
    assert plan is not None

    fill(server, config, first=1, count=4)
    full = newest(server, config)

    assert {reason for reason, _ in refusals(server, config)} == {"range-full"}
    assert "worker w2 is asked to encrypt it anew" in refusals(server, config)[0][1]
    assert full.sealed is not None
    assert full.sealed.bound(plan) <= LARGEST_VALUE
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        clock.seconds += REFUSALS_TOLD_AFTER_S
        leader.tick()
    send(server, config, a_refresh(full, "w2", 100))
    aggregate(server, config)
    fill(server, config, first=50, count=1)
    after = newest(server, config)
    assert opened(after) == pytest.approx([value + 1.0 for value in opened(full)], abs=EXACT)


def test_a_federation_ends_when_no_refresh_can_make_room() -> None:
    config = a_sealed_config(narrow(4.0))
    server = a_server(config)
    fill(server, config, first=1, count=3)

    send(server, config, a_refresh(newest(server, config), "w2", 100, largest=0.9 * LARGEST_VALUE))
    aggregate(server, config)

    assert newest(server, config).finished.startswith(
        "the sealed sum has come to 9.44e+05, and its ciphertexts"
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"refreshes": 1}, "late-refresh"), ({"weights": 10**9}, "late-refresh")],
)
def test_a_refresh_of_another_sum_is_refused(changed: dict[str, int], reason: str) -> None:
    config = a_sealed_config(narrow(10.0))
    server = a_server(config)
    fill(server, config, first=1, count=6)
    refresh = a_refresh(newest(server, config), "w2", 100)
    assert refresh.refresh is not None

    send(server, config, replace(refresh, refresh=replace(refresh.refresh, **changed)))
    aggregate(server, config)

    assert [found for found, _ in refusals(server, config)] == [reason]


def test_a_refresh_of_a_federation_without_a_sum_is_refused() -> None:
    ready, config = a_sealed_config(), a_sealed_config()
    server = a_server(ready, a_sealed_update("w1"), a_sealed_update("w2"))
    aggregate(server, ready)
    refresh = replace(a_refresh(newest(server, ready), "w1", 9), base_version=0, base_term=1)
    other = a_server(config, refresh)

    aggregate(other, config)

    assert refusals(other, config) == [
        ("late-refresh", "there is no sealed sum yet that could be encrypted anew")
    ]


def test_in_synchronous_rounds_a_refresh_ends_no_round_and_comes_with_the_next_version() -> None:
    plan = narrow(10.0, greatest=1)
    config = a_sealed_config(plan, strategy=a_strategy("fedavg", buffer_size=2))
    server, clock = a_server(config), Clock()
    fill(server, config, first=1, count=6)
    asking = newest(server, config)

    send(server, config, a_refresh(asking, "w2", 100))
    aggregate(server, config)
    during = newest(server, config)
    fill(server, config, first=7, count=1)
    after = newest(server, config)

    # Those who train for this round would have been too late for another version.
    assert during.version == asking.version
    assert after.version == asking.version + 1
    assert after.sealed is not None
    assert after.sealed.refreshes == 1
    assert opened(after) == pytest.approx([value + 1.0 for value in opened(asking)], abs=EXACT)

    # And where nobody trains, since the range is full, it comes when the buffer has waited long enough.
    send(server, config, a_refresh(after, "w1", 101))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds += config.commit_schedule.buffer_timeout_s
        leader.tick()
    assert newest(server, config).version == after.version + 1
    assert unacked(server, config) == []
