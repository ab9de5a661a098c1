"""Helpers that answer wrongly: the federation goes on without them, and no worker is blamed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, an_update
from fake_broker import FakeBroker, FakeServer
from leading import Clock, Heard, a_server, newest, rejected, send, take_the_lead, work_off
from securing import EPOCH, NAMES, VALUES, Helper, a_masked, a_secure_config, expected, go_on

from fluffle.events import Contradicted
from fluffle.secure.closing import CloseRecord, Opening, opening_pieces
from fluffle_aggregator.config import AggregatorConfig

Lie = Callable[[Opening], bytes]
SUM_OF_VALUES = expected(((values, 64) for values in VALUES.values()), 3)


def random_masks(opening: Opening) -> bytes:
    return os.urandom(len(opening.masks))


def same_wrong_masks(opening: Opening) -> bytes:
    return b"\x5a" * len(opening.masks)


def masks_of_one_group_only(opening: Opening) -> bytes:
    return random_masks(opening) if opening.group == 0 else bytes(opening.masks)


def wrong_at_first() -> Lie:
    told: set[int] = set()

    def lie(opening: Opening) -> bytes:
        is_first = opening.group not in told
        told.add(opening.group)
        return random_masks(opening) if is_first else bytes(opening.masks)

    return lie


def helpers(server: FakeServer, config: AggregatorConfig, lies: Mapping[str, Lie]) -> dict[str, Helper]:
    """Return the helpers, some of whom send other masks."""

    def changed(lie: Lie) -> Callable[[CloseRecord, Opening], bytes]:
        return lambda _, opening: bytes(opening_pieces(replace(opening, masks=memoryview(lie(opening)))))

    return {
        name: Helper(name, server, config, changed=changed(lies.get(name, lambda one: bytes(one.masks))))
        for name in NAMES
    }


def in_order(first: str) -> list[str]:
    return [first, *(name for name in NAMES if name != first)]


@pytest.mark.parametrize("liar", NAMES)
@pytest.mark.parametrize("make_lie", [lambda: random_masks, lambda: same_wrong_masks, wrong_at_first])
def test_one_lying_helper_of_three_stops_nothing_and_is_named(
    liar: str, make_lie: Callable[[], Lie], caplog: pytest.LogCaptureFixture
) -> None:
    events = Heard()
    config, clock = replace(a_secure_config(), event_sink=events), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    by_name = helpers(server, config, {liar: make_lie()})
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker, [by_name[name] for name in in_order(liar)], clock)
        version = newest(server, config)
        assert version.vector.tolist() == SUM_OF_VALUES
        assert {one.suspected for one in version.contributors.values()} == {0}
        assert [each.helpers for each in events.events if isinstance(each, Contradicted)] == [liar]
        assert "answered with wrong masks" in caplog.text
        # It is not asked first again, so that nobody waits.
        send(server, config, *(a_masked(name, 2, base_version=1) for name in VALUES))
        go_on(leader, broker, [by_name[name] for name in in_order(liar)])

    assert newest(server, config).version == 2
    assert rejected(server, config) == []


def test_a_helper_that_lies_about_one_group_only_is_named() -> None:
    events = Heard()
    config, clock = replace(a_secure_config(), event_sink=events), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    by_name = helpers(server, config, {"helper-2": masks_of_one_group_only})
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, clock), broker, list(by_name.values()), clock)

    assert newest(server, config).vector.tolist() == SUM_OF_VALUES
    assert [each.helpers for each in events.events if isinstance(each, Contradicted)] in ([], ["helper-2"])


def test_a_lying_helper_and_a_worker_with_nonsense_are_both_found() -> None:
    events = Heard()
    config, clock = replace(a_secure_config(), event_sink=events), Clock()
    nonsense = np.random.default_rng(0).integers(0, 2**32, SIZE, np.uint32)
    spoiled = EPOCH.masked(an_update("w3"), nonsense)
    server = a_server(config, a_masked("w1"), a_masked("w2"), spoiled)
    by_name = helpers(server, config, {"helper-1": random_masks})
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, clock), broker, list(by_name.values()), clock)

    assert {one["reason"] for one in rejected(server, config)} == {"unsound-sum"}
    assert {one.suspected for one in newest(server, config).contributors.values()} == {1}
    [contradicted] = [each for each in events.events if isinstance(each, Contradicted)]
    assert "helper-1" in contradicted.helpers


def test_while_a_helper_is_away_it_is_waited_for_before_workers_are_blamed_but_not_for_ever() -> None:
    config, clock = a_secure_config(), Clock()
    nonsense = np.random.default_rng(0).integers(0, 2**32, SIZE, np.uint32)
    server = a_server(config, a_masked("w1"), a_masked("w2"), EPOCH.masked(an_update("w3"), nonsense))
    by_name = helpers(server, config, {})
    present = [by_name["helper-1"], by_name["helper-2"]]
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker, present, clock)
        assert rejected(server, config) == []
        clock.seconds += 60
        go_on(leader, broker, present, clock)

    assert {one["reason"] for one in rejected(server, config)} == {"unsound-sum"}
    assert {one.suspected for one in newest(server, config).contributors.values()} == {1}


def test_helpers_that_need_long_to_answer_are_given_as_long_to_answer_again() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    by_name = helpers(server, config, {"helper-1": random_masks})
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds += 100
        go_on(leader, broker, [by_name["helper-1"], by_name["helper-2"]])
        clock.seconds += 250
        go_on(leader, broker)
        assert rejected(server, config) == []
        go_on(leader, broker, list(by_name.values()), clock)

    assert newest(server, config).vector.tolist() == SUM_OF_VALUES


def test_a_helper_that_comes_back_shows_which_of_the_others_lies() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    by_name = helpers(server, config, {"helper-1": random_masks})
    present = [by_name["helper-1"], by_name["helper-2"]]
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(3):
            go_on(leader, broker, present, clock)
        assert newest(server, config).version == 0
        go_on(leader, broker, list(by_name.values()), clock)

    assert newest(server, config).vector.tolist() == SUM_OF_VALUES
    assert rejected(server, config) == []


def test_no_worker_is_blamed_while_it_may_be_a_helper_that_lies() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    by_name = helpers(server, config, {"helper-1": random_masks})
    present = [by_name["helper-1"], by_name["helper-2"]]
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(3):
            go_on(leader, broker, present, clock)
        clock.seconds += 60
        go_on(leader, broker, present, clock)

    assert {one["reason"] for one in rejected(server, config)} == {"unsound-sum"}
    assert {one.suspected for one in newest(server, config).contributors.values()} <= {0}
