"""Two aggregators at once: one leads, the other takes over, and both leave at the end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import pytest
from builders import a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from federation import wait_until
from leading import UntilQuiet, a_server, aggregate, newest, send, unacked, versions

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, LayoutError, TopologyMissing
from fluffle.events import Event, Left, Rejected
from fluffle.framing import record_digest
from fluffle.record import ModelVersion
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import StreamHealth
from fluffle_aggregator.service import serve, stand_by_and_lead

SOON_S = 10.0


class Listening:
    """Keeps what an aggregator tells."""

    def __init__(self) -> None:
        self.told: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.told.append(event)

    def over(self, broker: Broker) -> AbstractContextManager[object]:
        return nullcontext(broker)


class Aggregator:
    """One aggregator in a thread of its own, and the connections that it has made."""

    def __init__(self, server: FakeServer, config: AggregatorConfig) -> None:
        self._server = server
        self.connections: list[FakeBroker] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=serve, args=[config, self._connect, self.stop])
        self.thread.start()

    def _connect(self) -> Broker:
        self.connections.append(FakeBroker(self._server))
        return self.connections[-1]

    def leave(self) -> None:
        """Ask it to stop, and wait."""
        self.stop.set()
        self.thread.join()


@contextmanager
def two_aggregators(server: FakeServer, config: AggregatorConfig) -> Iterator[tuple[Aggregator, Aggregator]]:
    """Start one that leads, and then one that stands by."""
    queue = server.queue(config.topology.updates.name)
    first = Aggregator(server, config)
    wait_until(lambda: len(queue.consumers) == 1, "the first", deadline_s=SOON_S)
    second = Aggregator(server, config)
    wait_until(lambda: len(queue.consumers) == 2, "the second", deadline_s=SOON_S)
    try:
        yield first, second
    finally:
        first.leave()
        second.leave()


def is_at(server: FakeServer, config: AggregatorConfig, version: int) -> Callable[[], bool]:
    return lambda: newest(server, config).version == version


def test_when_the_leader_is_lost_the_standby_goes_on_in_one_line_of_versions() -> None:
    config = a_config(a_strategy(buffer_size=2))
    server = a_server(config)
    server.longest_wait_s = SOON_S

    with two_aggregators(server, config) as (first, _):
        for number in range(4):
            term = newest(server, config).term
            send(server, config, an_update("a", number + 1, base_version=number, base_term=term))
            if number % 2:
                # With one update in its buffer the leader is gone, and comes back as the standby.
                server.queue(config.topology.updates.name).consumers[0].close()
            send(server, config, an_update("b", number + 1, base_version=number, base_term=term))
            wait_until(is_at(server, config, number + 1), f"version {number + 1}", deadline_s=SOON_S)

    history = versions(server, config)
    bodies = server.bodies(config.topology.models.name)
    assert [one.version for one in history] == [0, 1, 2, 3, 4]
    assert [one.parent for one in history[1:]] == [record_digest(body) for body in bodies[:-1]]
    assert [one.term for one in history] == [1, 2, 3, 3, 4]
    assert [one.id for version in history for one in version.folded] == [
        an_update(worker, number).id for number in (1, 2, 3, 4) for worker in "ab"
    ]
    assert len(first.connections) > 1
    assert unacked(server, config) == []


def test_a_standby_of_another_architecture_ends_while_the_leader_is_at_work() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config)
    server.longest_wait_s = SOON_S
    queue = server.queue(config.topology.updates.name)

    def compare(_: ModelVersion) -> None:
        raise LayoutError("another architecture")

    leader = Aggregator(server, config)
    try:
        wait_until(lambda: len(queue.consumers) == 1, "the leader", deadline_s=SOON_S)
        with pytest.raises(LayoutError, match="another architecture"):
            serve(replace(config, compare=compare), lambda: FakeBroker(server), until(SOON_S))

        send(server, config, an_update("a", 1))
        wait_until(is_at(server, config, 1), "version 1", deadline_s=SOON_S)
    finally:
        leader.leave()


def until(seconds: float) -> threading.Event:
    """Return an event that is set after so long, so that a test fails and does not hang."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.daemon = True
    timer.start()
    return stop


def test_at_the_end_the_standby_leaves_too() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_versions=1))
    server = a_server(config)
    server.longest_wait_s = SOON_S

    with two_aggregators(server, config) as (first, second):
        send(server, config, an_update())

        first.thread.join(SOON_S)
        second.thread.join(SOON_S)

        assert not first.thread.is_alive()
        assert not second.thread.is_alive()
    assert newest(server, config).finished == "1 versions were made"
    assert len(versions(server, config)) == 2
    assert unacked(server, config) == []


def test_an_aggregator_that_only_comes_to_see_the_end_is_told_of_as_no_takeover() -> None:
    config = a_config(first=a_version(3, finished="it was enough"))
    server = a_server(config, an_update("late"))
    event_sink = Listening()

    aggregate(server, replace(config, event_sink=event_sink))

    assert [type(event) for event in event_sink.told] == [Rejected, Left]


def test_of_two_aggregators_of_a_new_federation_one_publishes_version_zero() -> None:
    config = a_config()
    server = a_server(config, first=False)
    server.longest_wait_s = SOON_S

    with two_aggregators(server, config):
        wait_until(lambda: bool(versions(server, config)), "version 0", deadline_s=SOON_S)

    assert [(one.term, one.version) for one in versions(server, config)] == [(1, 0)]


def test_an_aggregator_does_not_take_a_broker_that_has_lost_everything_for_a_new_federation() -> None:
    config = a_config(a_strategy(buffer_size=1))
    stop = threading.Event()
    servers = [a_server(config, an_update(), first=False), a_server(config, an_update(), first=False)]
    used: list[FakeServer] = []

    def connect() -> Broker:
        used.append(servers[min(len(used), 1)])
        return UntilQuiet(used[-1], Losing(stop)) if len(used) == 1 else UntilQuiet(used[-1], stop)

    with pytest.raises(TopologyMissing, match=r"had versions, and now .* are empty.*model restore"):
        serve(config, connect, stop)

    assert len(versions(servers[0], config)) == 2
    assert versions(servers[1], config) == []


class Losing(threading.Event):
    """Loses the connection where a test would ask the aggregator to stop."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def set(self) -> None:
        """Be gone."""
        raise ConnectionLost("the broker is gone, with all that it had")


def test_a_standby_does_not_take_a_broker_that_has_lost_everything_for_a_new_federation_either() -> None:
    config = a_config(a_strategy(buffer_size=1))
    stream_health = StreamHealth()
    with FakeBroker(a_server(config)) as broker:
        stream_health.look_at_head_when_due(broker, config.topology)

    with (
        UntilQuiet(a_server(config, first=False), threading.Event()) as broker,
        pytest.raises(TopologyMissing, match="had versions"),
    ):
        stand_by_and_lead(config, broker, stream_health, threading.Event())
