"""The best version is copied before the stream of models loses it, and only then."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from broken_stream import BrokenStream
from brokers import commit
from builders import a_version, an_evaluation
from fake_broker import FakeBroker, FakeServer
from federation import wait_until
from leading import Clock

from fluffle.errors import ConnectionLost
from fluffle.model_stream import best_at_hand
from fluffle.record import ModelVersion
from fluffle.topology import topology_of
from fluffle_aggregator.best_keeper import AGAIN_AFTER_S, LOOK_AGAIN_S, BestKeeper
from fluffle_aggregator.head import UNREADABLE_TIMES

TOPOLOGY = topology_of("digits")
SIZE = a_version().payload_size_bytes


class Leader:
    """Publishes versions, and keeps the best one when three more have followed it."""

    def __init__(self, connect: Callable[[FakeServer], FakeBroker] = FakeBroker) -> None:
        self.server, self.clock = FakeServer(longest_wait_s=0), Clock()
        self.broker = connect(self.server)
        self.broker.declare(TOPOLOGY)
        self.keeper = BestKeeper(self.broker, TOPOLOGY, at_risk_bytes=3 * SIZE, clock=self.clock)
        self.term = 1

    def publish(self, number: int, best: int | None = None) -> ModelVersion:
        """Publish a version whose record says which one is best."""
        evaluation = None if best is None else an_evaluation(best, {"accuracy": 0.5})
        plain = a_version(number, term=self.term, values=[number] * 4)
        version = replace(plain, best=evaluation, best_by="accuracy:max")
        commit(self.broker, TOPOLOGY, version)
        self.keeper.note_published(version)
        self.look(version)
        return version

    def look(self, version: ModelVersion) -> None:
        """Let the keeper do what is due, and wait for its thread."""
        self.keeper.keep_when_due(version)
        reading = self.keeper._reading
        if reading:
            wait_until(lambda: reading.has_ended, "the thread to end")
            self.keeper.keep_when_due(version)

    @property
    def kept(self) -> int:
        """How many messages the stream of the best version has."""
        return len(self.server.bodies(TOPOLOGY.best.name))


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_the_best_version_is_copied_once_enough_has_followed_it(leader: Leader) -> None:
    leader.publish(0)
    leader.publish(1, best=1)
    for number in (2, 3):
        leader.publish(number, best=1)
        assert leader.kept == 0
    for number in (4, 5, 6, 7):
        leader.publish(number, best=1)

    assert leader.kept == 1
    found = best_at_hand(leader.broker, TOPOLOGY, 1)
    assert found is not None
    assert found.version.vector.tolist() == [1.0] * 4
    assert best_at_hand(leader.broker, TOPOLOGY, 7) is None


def test_while_the_model_improves_nothing_is_copied(leader: Leader) -> None:
    for number in range(20):
        leader.publish(number, best=number)

    assert leader.kept == 0


def test_a_successor_copies_what_was_best_before_its_time(leader: Leader) -> None:
    for number in range(3):
        leader.publish(number, best=1)
    leader.keeper = BestKeeper(leader.broker, TOPOLOGY, at_risk_bytes=3 * SIZE, clock=leader.clock)
    for number in (3, 4, 5):
        leader.publish(number, best=1)

    assert leader.kept == 1
    assert best_at_hand(leader.broker, TOPOLOGY, 1) is not None


def test_a_best_version_that_is_gone_already_is_said_once_a_minute(
    leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    leader.publish(0)
    leader.publish(1, best=1)
    leader.broker.recreate_stream(TOPOLOGY.models)

    def complaints() -> int:
        return caplog.text.count("the best version is no longer in the stream")

    for number in range(2, 8):
        last = leader.publish(number, best=1)
    assert complaints() == 1
    leader.clock.seconds += AGAIN_AFTER_S
    leader.look(last)

    assert complaints() == 2
    assert leader.kept == 0


def test_a_stream_that_a_power_cut_has_broken_is_made_anew_before_the_best_version_goes_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leader = Leader(lambda server: BrokenStream(server, TOPOLOGY.best, ConnectionLost("INTERNAL_ERROR")))
    for number in range(5):
        last = leader.publish(number, best=1)
    assert leader.kept == 0
    for _ in range(UNREADABLE_TIMES):
        leader.clock.seconds += LOOK_AGAIN_S
        leader.look(last)
        leader.look(last)

    assert caplog.text.count("recreating the stream of the best version") == 1
    assert leader.kept == 1
    assert best_at_hand(leader.broker, TOPOLOGY, 1) is not None


def test_of_two_versions_with_one_number_that_of_the_newer_leader_is_kept(leader: Leader) -> None:
    leader.publish(0)
    commit(leader.broker, TOPOLOGY, a_version(1, values=[9.0] * 4))
    leader.term = 2
    for number in range(1, 6):
        leader.publish(number, best=1)

    found = best_at_hand(leader.broker, TOPOLOGY, 1)

    assert found is not None
    assert found.version.term == 2
    assert found.version.vector.tolist() == [1.0] * 4
