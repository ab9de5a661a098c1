"""The aggregator's loop: what becomes a version, when, and what is acked."""

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_config, a_strategy, a_vector, a_version, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    a_server,
    aggregate,
    encoded,
    newest,
    rejected,
    send,
    take_the_lead,
    unacked,
    versions,
    work_off,
)

from fluffle.broker import Broker
from fluffle.errors import QueueFull
from fluffle.events import Evaluated, Event
from fluffle.framing import record_digest
from fluffle.model import Layout
from fluffle.topology import Topology
from fluffle.update import UpdateId
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth
from fluffle_aggregator.service import stand_by_and_lead


def test_a_full_buffer_becomes_one_version_and_then_the_updates_are_acked() -> None:
    config = a_config(a_strategy("fedbuff", buffer_size=2))
    server = a_server(config, an_update("a", values=[1] * SIZE), an_update("b", values=[3] * SIZE))

    aggregate(server, config)

    assert [version.version for version in versions(server, config)] == [0, 1]
    assert newest(server, config).vector.tolist() == [2.0] * SIZE
    assert unacked(server, config) == []


def test_a_buffer_that_is_not_full_becomes_no_version_and_stays_with_the_broker() -> None:
    config = a_config(a_strategy("fedbuff", buffer_size=2))
    only = an_update("a")
    server = a_server(config, only)

    aggregate(server, config)

    assert [version.version for version in versions(server, config)] == [0]
    assert encoded(only) in unacked(server, config)


def test_a_new_federation_begins_with_version_zero_of_term_one() -> None:
    config = a_config(first=a_version(values=[1, 2, 3, 4]))
    server = a_server(config, first=False)

    aggregate(server, config)

    [first] = versions(server, config)
    assert (first.term, first.version, first.parent) == (1, 0, "")
    assert first.vector.tolist() == [1, 2, 3, 4]


def test_each_takeover_has_a_higher_term_and_each_record_names_its_parent() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, first=False)

    for sequence in range(1, 4):
        send(server, config, an_update("w", sequence, base_version=sequence - 1))
        aggregate(server, config)

    history = versions(server, config)
    bodies = server.bodies(config.topology.models.name)
    assert [(one.term, one.version) for one in history] == [(1, 0), (1, 1), (2, 2), (3, 3)]
    assert [one.parent for one in history] == ["", *map(record_digest, bodies[:-1])]


def test_a_record_says_what_it_contains_and_who_gave_it() -> None:
    config = a_config(a_strategy("fedbuff", buffer_size=2))
    server = a_server(config, an_update("a", 1, examples=10), an_update("b", 7, examples=30))

    aggregate(server, config)

    record = newest(server, config)
    assert [str(one.id) for one in record.folded] == ["a/r1/1", "b/r1/7"]
    assert UpdateId("b", "r1", 7) in record.applied
    assert UpdateId("b", "r1", 6) not in record.applied
    assert {name: (one.updates, one.examples) for name, one in record.contributors.items()} == {
        "a": (1, 10),
        "b": (1, 30),
    }
    assert record.updates == 2
    assert record.strategy.startswith("fedbuff(buffer_size=2")


def test_staleness_counts_from_the_version_before_the_update_makes_a_new_one() -> None:
    config = a_config(a_strategy("fedbuff", buffer_size=1, staleness="polynomial:1"))
    bases = [0, 1, 0, 3]
    server = a_server(config, *(an_update("w", n + 1, base_version=base) for n, base in enumerate(bases)))

    aggregate(server, config)

    folded = [one for version in versions(server, config) for one in version.folded]
    assert [one.staleness for one in folded] == [0, 0, 2, 0]
    assert [one.weight for one in folded] == [1.0, 1.0, pytest.approx(1 / 3), 1.0]


def test_fedasync_mixes_each_update_in_and_publishes_as_rarely_as_it_is_told() -> None:
    config = a_config(a_strategy("fedasync", mixing=0.5), commit_schedule=CommitSchedule(every=3))
    weights = [
        an_update("w", n, base_version=n - 1, values=[8.0] * SIZE, sends="weights") for n in range(1, 6)
    ]
    server = a_server(config, *weights)

    aggregate(server, config)

    assert [(one.version, len(one.folded)) for one in versions(server, config)] == [(0, 0), (3, 3)]
    assert newest(server, config).vector.tolist() == [7.0] * SIZE  # 0, 4, 6, 7
    held = unacked(server, config)
    assert [body for body in held if body in map(encoded, weights)] == [encoded(one) for one in weights[3:]]


def test_a_synchronous_round_takes_one_update_of_each_worker_and_no_late_one() -> None:
    config = a_config(a_strategy("fedavg", buffer_size=2))
    server = a_server(
        config,
        an_update("a", 1, values=[1] * SIZE, examples=10),
        an_update("a", 2, values=[100] * SIZE),
        an_update("b", 1, values=[4] * SIZE, examples=20),
        an_update("c", 1, values=[100] * SIZE),
    )

    aggregate(server, config)

    assert newest(server, config).vector.tolist() == [3.0] * SIZE
    assert [(line["worker"], line["reason"]) for line in rejected(server, config)] == [
        ("a", "second-in-round"),
        ("c", "too-stale"),
    ]


def test_the_integers_of_the_newest_update_stand() -> None:
    layout = Layout.of({"w": np.zeros(SIZE, np.float32), "steps": np.zeros(1, np.int16)})
    first = replace(a_version(layout=layout), integers=b"\0\0")
    config = a_config(a_strategy(buffer_size=2), first=first)
    updates = [an_update(name, layout=layout, integers=bytes([n, 0])) for n, name in enumerate("ab", start=7)]
    server = a_server(config, *updates)

    aggregate(server, config)

    assert newest(server, config).integers == b"\x08\0"


def test_the_plan_of_the_strategy_travels_in_every_record() -> None:
    config = a_config(a_strategy("fedavg", buffer_size=1), first=a_version())
    server = a_server(config, an_update())

    aggregate(server, config)

    assert [one.plan.one_update_per_version for one in versions(server, config)] == [True, True]


class Timed:
    """A leader on a fake server whose clock the test holds."""

    def __init__(self, config: AggregatorConfig) -> None:
        self.config = config
        self.server = a_server(config)
        self.broker = FakeBroker(self.server)
        self.clock = Clock()
        self.leader = take_the_lead(self.broker, config, self.clock)

    def at(self, seconds: float) -> list[int]:
        """Let the leader look at its messages at this time, and return the versions that were published."""
        self.clock.seconds = seconds
        work_off(self.leader, self.broker)
        return [version.version for version in versions(self.server, self.config)]


def test_a_partial_buffer_is_flushed_when_its_oldest_update_has_waited_long_enough() -> None:
    timed = Timed(
        a_config(a_strategy("fedbuff", buffer_size=4), commit_schedule=CommitSchedule(buffer_timeout_s=60))
    )

    assert timed.at(100) == [0]
    send(timed.server, timed.config, an_update("a", values=[1] * SIZE))
    assert timed.at(110) == [0]
    send(timed.server, timed.config, an_update("b", values=[3] * SIZE))
    assert timed.at(169.9) == [0]

    assert timed.at(170) == [0, 1]
    assert newest(timed.server, timed.config).vector.tolist() == [2.0] * SIZE, "divided by what it holds"
    timed.broker.close()
    assert unacked(timed.server, timed.config) == []


def test_steps_are_published_after_so_many_seconds_even_if_they_are_few() -> None:
    timed = Timed(
        a_config(a_strategy("fedbuff", buffer_size=1), commit_schedule=CommitSchedule(every=100, after_s=5))
    )

    send(timed.server, timed.config, an_update("a", 1))
    assert timed.at(4.9) == [0]
    assert timed.at(5) == [0, 1]

    send(timed.server, timed.config, an_update("a", 2))
    assert timed.at(9.9) == [0, 1], "counted from the last commit"
    assert timed.at(10) == [0, 1, 2]
    assert timed.at(100) == [0, 1, 2], "without a step there is nothing to publish"


def test_an_evaluation_is_not_held_for_ever_while_nobody_trains() -> None:
    timed = Timed(a_config(commit_schedule=CommitSchedule(buffer_timeout_s=60)))
    send(timed.server, timed.config, an_evaluation(0))

    assert timed.at(1) == [0]
    timed.at(61)

    timed.broker.close()
    assert unacked(timed.server, timed.config) == []


def test_the_seconds_with_a_leader_add_up_over_leaders() -> None:
    config = a_config(a_strategy(buffer_size=1))
    first = Timed(config)
    send(first.server, config, an_update("a", 1))
    first.at(30)
    first.clock.seconds = 35  # lost: nobody commits them
    first.broker.close()

    clock = Clock()
    with FakeBroker(first.server) as broker:
        clock.seconds = 1000
        leader = take_the_lead(broker, config, clock)
        send(first.server, config, an_update("a", 2))
        clock.seconds = 1012
        work_off(leader, broker)

    assert [one.elapsed_s for one in versions(first.server, config)] == [0.0, 30.0, 42.0]


def test_an_aggregator_that_is_asked_to_stop_leaves_what_it_holds_to_the_next() -> None:
    config = a_config(a_strategy(buffer_size=2))
    server = a_server(config, an_update("a"))
    aggregate(server, config)
    send(server, config, an_update("b"))

    aggregate(server, config)

    record = newest(server, config)
    assert [one.id.worker for one in record.folded] == ["a", "b"]


def test_a_full_updates_queue_does_not_keep_a_standby_out() -> None:
    config = replace(a_config(a_strategy(buffer_size=1)), topology=small_updates_queue(a_config().topology))
    server = a_server(config)
    with FakeBroker(server) as slow_leader:
        slow_leader.consume(config.topology.updates.name, prefetch=1)
        with pytest.raises(QueueFull):
            send(server, config, *(an_update("a", sequence) for sequence in range(1, 100)))

        aggregate(server, config)
        assert newest(server, config).updates == 0

    aggregate(server, config)
    assert newest(server, config).updates > 0


def small_updates_queue(topology: Topology) -> Topology:
    arguments = {**topology.updates.arguments, "x-max-length-bytes": len(encoded(an_update()))}
    return replace(topology, updates=replace(topology.updates, arguments=arguments))


def test_a_standby_that_is_told_to_stop_leaves_without_having_led() -> None:
    config = a_config()
    server = FakeServer(longest_wait_s=0)
    stop = threading.Event()
    stop.set()

    with FakeBroker(server) as broker:
        stand_by_and_lead(config, broker, StreamHealth(), stop)

    assert versions(server, config) == []


def test_two_evaluations_between_two_versions_never_fill_the_prefetch_window() -> None:
    config = a_config(a_strategy(buffer_size=2))
    reports = [an_evaluation(0, {"accuracy": 0.1}, evaluator=f"e{n}") for n in range(20)]
    server = a_server(config, an_update("a"), *reports, an_update("b"))

    aggregate(server, config)

    assert newest(server, config).updates == 2
    assert unacked(server, config) == []


class Told:
    """An event sink that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def over(self, broker: Broker) -> AbstractContextManager[object]:
        return nullcontext(broker)


def test_after_a_takeover_the_older_report_of_a_slow_evaluator_is_acked_and_not_told() -> None:
    told = Told()
    config = replace(a_config(a_strategy(buffer_size=1)), event_sink=told)
    server = a_server(config, an_update("a", 1))
    aggregate(server, config)
    send(server, config, an_evaluation(1, evaluator="fast"), an_update("a", 2, base_version=1))
    aggregate(server, config)
    send(server, config, an_evaluation(0, evaluator="slow"))

    aggregate(server, config)

    assert [event for event in told.events if isinstance(event, Evaluated)] == [Evaluated(1, {})]
    assert unacked(server, config) == []


def test_the_newest_evaluation_waits_for_its_record_though_an_older_one_comes_after_it() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, an_update("a"))
    aggregate(server, config)
    newer, older = an_evaluation(1, evaluator="fast"), an_evaluation(0, evaluator="slow")
    send(server, config, newer, older)

    aggregate(server, config)

    assert unacked(server, config) == [encoded(newer)]


def test_the_vector_of_a_record_is_what_the_head_starts_the_next_leader_from() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, an_update("a", 1, values=[1, 2, 3, 4]))
    aggregate(server, config)
    send(server, config, an_update("a", 2, base_version=1, values=[1, 1, 1, 1]))

    aggregate(server, config)

    assert np.array_equal(newest(server, config).vector, a_vector(2, 3, 4, 5))
