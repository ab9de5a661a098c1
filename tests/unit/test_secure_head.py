"""The sums in the head: the right one is opened, and none is forgotten before its version is there."""

from dataclasses import replace

import pytest
from fake_broker import FakeBroker, FakeServer
from leading import Clock, a_server, newest, rejected, take_the_lead, unacked, work_off
from securing import PLAN, VALUES, a_masked, a_secure_config, expected, go_on, helpers

from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import decode_record
from fluffle.secure.sums import SumRecord
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth, read_head
from fluffle_aggregator.head_keeper import AGAIN_AFTER_S, AT_MOST_EVERY_S, EVERY_S, HeadKeeper

SUM_OF_VALUES = expected(((values, 64) for values in VALUES.values()), 3)


def sums_in_head(server: FakeServer, config: AggregatorConfig) -> list[bytes]:
    bodies = server.bodies(config.topology.head.name)
    return [body for body in bodies if isinstance(decode_record(body), SumRecord)]


def close_a_sum(server: FakeServer, config: AggregatorConfig) -> None:
    """Let a leader close a sum, and die."""
    with FakeBroker(server) as broker:
        work_off(take_the_lead(broker, config, Clock()), broker)


def with_two_sums(config: AggregatorConfig, *, is_late: bool, knows_first: bool) -> FakeServer:
    """Return a server on which two leaders have closed a sum for the same version; helpers know one of them.

    The sum of the first leader comes late: before that of the second one, or after it.
    """
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    head, closes = server.queue(config.topology.head.name), server.queue(config.topology.closes.name)
    close_a_sum(server, config)
    first = head.ready.pop()
    asked = list(closes.ready)
    closes.ready.clear()
    server.queue(config.topology.updates.name).ready.reverse()
    close_a_sum(server, config)
    second = head.ready.pop()
    head.ready.extend([second, first] if is_late else [first, second])
    if knows_first:
        closes.ready.extendleft(asked)
    return server


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("knows_first", [False, True])
def test_of_two_sums_for_the_next_version_the_one_that_helpers_know_is_opened(
    is_late: bool, knows_first: bool
) -> None:
    config, clock = a_secure_config(), Clock()
    server = with_two_sums(config, is_late=is_late, knows_first=knows_first)
    assert len(sums_in_head(server, config)) == 2
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(3):
            go_on(leader, broker, helpers(server, config), clock)

    version = newest(server, config)
    assert version.vector.tolist() == SUM_OF_VALUES
    in_order = ["w1", "w2", "w3"] if knows_first else ["w3", "w2", "w1"]
    assert [one.id.worker for one in version.folded] == in_order
    assert rejected(server, config) == []
    assert unacked(server, config) == []


def test_a_leader_with_another_plan_puts_the_sum_that_waits_back_too() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    close_a_sum(server, config)
    another_plan = a_secure_config(secure=replace(PLAN, clip=2.0).numbered())
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, another_plan, clock)
        server.queue(config.topology.head.name).ready.clear()
        for seconds in (EVERY_S, AGAIN_AFTER_S):
            clock.seconds += seconds
            leader.look_after_head()
        assert len(sums_in_head(server, config)) == 1
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, another_plan, clock), broker, helpers(server, config))

    assert newest(server, config).vector.tolist() == SUM_OF_VALUES


def test_only_the_version_of_a_sum_makes_the_head_forget_it() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    close_a_sum(server, config)
    with FakeBroker(server) as broker:
        head = read_head(broker, config.topology, StreamHealth())
        assert head
        keeper = HeadKeeper(
            broker, config.topology, "float32", messages=head.messages, sums=head.sums, clock=clock
        )

        def left_after_a_loss(record: ModelVersion) -> int:
            """Return how many sums lie in a head that was emptied, once a version is published."""
            digest = keeper.publish(record)
            server.queue(config.topology.head.name).ready.clear()
            for seconds in (AT_MOST_EVERY_S, AGAIN_AFTER_S):
                clock.seconds += seconds
                keeper.is_whole_when_due(record, no_moments, digest)
            return len(sums_in_head(server, config))

        again = replace(head.record, term=head.term + 1)
        assert left_after_a_loss(again) == 1
        assert left_after_a_loss(replace(again, version=1)) == 0


def no_moments(rank: Rank) -> MomentsRecord:
    return MomentsRecord("digits", rank, {})
