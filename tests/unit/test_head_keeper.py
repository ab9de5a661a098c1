"""The head queue loses messages under a leader: it notices, says so, and puts the newest version back."""

import itertools
from dataclasses import replace

import pytest
from builders import SIZE, a_config, a_strategy, an_update
from fake_broker import FakeBroker, FakeServer
from hypothesis import given
from hypothesis import strategies as st
from leading import Clock, a_server, newest, send, take_the_lead, unacked, versions, work_off

from fluffle.broker import QueueState
from fluffle.framing import record_digest
from fluffle.record import ModelVersion, MomentsRecord
from fluffle.record_wire import decode_record, decode_version
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import StreamHealth, read_head
from fluffle_aggregator.head_keeper import AGAIN_AFTER_S, AT_MOST_EVERY_S, EVERY_S
from fluffle_aggregator.leading import Leading
from fluffle_aggregator.strategies.strategy import Strategy

LOSS = "the head has lost messages"


def in_head(server: FakeServer, config: AggregatorConfig) -> list[bytes]:
    return server.bodies(config.topology.head.name)


def purge(server: FakeServer, config: AggregatorConfig) -> None:
    """Empty the head, as somebody does in RabbitMQ's UI, or as a message-ttl does."""
    server.queue(config.topology.head.name).ready.clear()


def look_twice(leader: Leading, clock: Clock) -> None:
    """Let a leader look, and look again; it believes the second look."""
    clock.seconds += AT_MOST_EVERY_S
    leader.look_after_head()
    clock.seconds += AGAIN_AFTER_S
    leader.look_after_head()


def records(server: FakeServer, config: AggregatorConfig) -> list[ModelVersion | MomentsRecord]:
    found = [decode_record(body) for body in in_head(server, config)]
    return [each for each in found if isinstance(each, ModelVersion | MomentsRecord)]


def test_an_emptied_head_gets_the_newest_version_again_bit_for_bit_and_its_cause_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, clock = a_config(a_strategy(buffer_size=1)), Clock()
    server = a_server(config, an_update("w"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        *_, committed = in_head(server, config)
        before = server.bodies(config.topology.models.name)
        purge(server, config)

        look_twice(leader, clock)

    assert in_head(server, config) == [committed]
    # Nobody who reads the stream sees anything of it.
    assert server.bodies(config.topology.models.name) == before
    assert caplog.text.count(LOSS) == 1
    for word in ("message-ttl", "purged", "rabbitmqctl list_policies", config.topology.head.name):
        assert word in caplog.text


@pytest.mark.parametrize("held", [0, 1])
def test_a_successor_goes_on_from_what_was_put_back_with_its_optimizer(held: int) -> None:
    config, clock = a_config(a_strategy(buffer_size=2, optimizer="adam")), Clock()
    updates = [an_update("w", sequence, values=[sequence] * SIZE) for sequence in range(1, 5)]
    server, undisturbed = a_server(config, *updates[: 2 + held]), a_server(config, *updates)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        assert leader.held == held
        purge(server, config)
        look_twice(leader, clock)
    send(server, config, *updates[2 + held :])

    for each in (server, undisturbed):
        with FakeBroker(each) as broker:
            successor = take_the_lead(broker, config, Clock())
            work_off(successor, broker)

    assert newest(server, config).vector.tolist() == newest(undisturbed, config).vector.tolist()
    history = versions(server, config)
    assert [one.version for one in history] == [0, 1, 2]
    bodies = server.bodies(config.topology.models.name)
    assert [one.parent for one in history[1:]] == [record_digest(body) for body in bodies[:-1]]


def test_between_two_commits_the_next_version_takes_the_place_of_the_lost_one() -> None:
    # The vector has moved on from the newest version: published under its number, it would be a lie.
    config, clock = a_config(a_strategy("fedasync"), commit_schedule=CommitSchedule(every=5)), Clock()
    updates = [an_update("w", sequence, values=[sequence] * SIZE, sends="weights") for sequence in (1, 2)]
    server = a_server(config, *updates)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        assert leader.held == 2
        purge(server, config)

        look_twice(leader, clock)

    assert unacked(server, config) == []
    assert [one.version for one in versions(server, config)] == [0, 2]
    assert in_head(server, config)[-1] == server.bodies(config.topology.models.name)[-1]


def test_a_leader_puts_back_what_it_took_over_before_it_has_made_a_version() -> None:
    config, clock = a_config(a_strategy(buffer_size=1)), Clock()
    server = a_server(config, an_update("w"))
    with FakeBroker(server) as broker:
        work_off(take_the_lead(broker, config, clock), broker)
    *_, committed = in_head(server, config)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        purge(server, config)
        look_twice(leader, clock)

    assert in_head(server, config) == [committed]


def test_the_closing_version_is_put_back_as_closing() -> None:
    config, clock = a_config(a_strategy(buffer_size=1), goal=Goal(max_versions=1)), Clock()
    server = a_server(config, an_update("w"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        assert leader.finished
        purge(server, config)

        look_twice(leader, clock)

    [record] = records(server, config)
    assert isinstance(record, ModelVersion)
    assert record.finished


def test_what_somebody_only_holds_for_a_moment_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    config, clock = a_config(), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        before = in_head(server, config)

        for _ in range(3):
            clock.seconds += EVERY_S
            purge(server, config)
            leader.look_after_head()
            clock.seconds += AGAIN_AFTER_S
            with FakeBroker(server) as somebody:
                somebody.publish(config.topology.head_in.name, "", before[0], {})
            leader.look_after_head()

    assert in_head(server, config) == before
    assert LOSS not in caplog.text


class CountsNothing(FakeBroker):
    """A node that cannot reach the others: it counts 0 in a queue that has messages."""

    def state(self, queue: str) -> QueueState:
        """See Broker."""
        return replace(super().state(queue), messages=0)


def test_a_count_of_nothing_is_believed_only_if_there_is_nothing(caplog: pytest.LogCaptureFixture) -> None:
    config, clock = a_config(), Clock()
    server = a_server(config)
    with CountsNothing(server) as broker:
        leader = take_the_lead(broker, config, clock)
        before = in_head(server, config)

        for _ in range(3):
            look_twice(leader, clock)
        assert in_head(server, config) == before
        assert LOSS not in caplog.text

        purge(server, config)
        look_twice(leader, clock)
        assert in_head(server, config) == before


def test_where_messages_vanish_again_and_again_the_model_is_published_ever_less_often() -> None:
    config, clock = a_config(), Clock()
    server = a_server(config)
    found = []
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(600):
            purge(server, config)
            clock.seconds += 1
            leader.look_after_head()
            if in_head(server, config):
                found.append(clock.seconds)

    pauses = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= EVERY_S
    assert max(pauses) <= AT_MOST_EVERY_S + AGAIN_AFTER_S


@given(
    strategy=st.sampled_from(
        [
            a_strategy("fedasync"),
            a_strategy("fedbuff", buffer_size=2, optimizer="adam"),
            a_strategy("fedbuff", buffer_size=3),
        ]
    ),
    every=st.integers(1, 3),
    steps=st.lists(st.sampled_from(["update", "update", "look", "purge", "takeover"]), max_size=25),
)
def test_whatever_vanishes_the_head_holds_nothing_but_versions_that_were_published_and_then_the_newest(
    strategy: Strategy, every: int, steps: list[str]
) -> None:
    config, clock, sent = a_config(strategy, commit_schedule=CommitSchedule(every=every)), Clock(), 0
    server = a_server(config)
    broker = FakeBroker(server)
    leader = take_the_lead(broker, config, clock)

    for step in [*steps, "look"]:
        if step == "update":
            sent += 1
            base = newest(server, config)
            values = [float(sent)] * SIZE
            send(
                server,
                config,
                an_update(
                    *("w", sent),
                    base_version=base.version,
                    base_term=base.term,
                    values=values,
                    sends=strategy.sends,
                ),
            )
            work_off(leader, broker)
        elif step == "purge":
            purge(server, config)
        else:
            look_twice(leader, clock)
        if step == "takeover":
            broker.close()
            broker = FakeBroker(server)
            leader = take_the_lead(broker, config, clock)
            work_off(leader, broker)

    published = server.bodies(config.topology.models.name)
    held = [body for body in in_head(server, config) if isinstance(decode_record(body), ModelVersion)]
    assert set(held) <= set(published)
    assert max(held, key=lambda body: decode_version(body).rank) == published[-1]
    head = read_head(broker, config.topology, StreamHealth())
    assert head is not None
    found = set(head.moments.vectors) if head.moments else set()
    assert found == (set(strategy.moment_names) if head.record.version else set())
    folded = [one.id for version in versions(server, config) for one in version.folded]
    assert len(folded) == len(set(folded))
    assert newest(server, config).updates + leader.held == sent
    broker.close()
