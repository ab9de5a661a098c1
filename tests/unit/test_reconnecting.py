"""Working on one connection after the other: what is tried again, how often, and how long."""

import threading
from itertools import pairwise

import pytest
from fake_broker import FakeBroker, FakeServer

from fluffle import reconnecting
from fluffle.broker import Broker
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    LimitReached,
    NameTaken,
    QueueFull,
    RequestRefused,
    StreamUnreadable,
    TopologyMissing,
    Unroutable,
)
from fluffle.reconnecting import (
    LONGEST_WAIT_S,
    run_with_reconnect,
    until_federation_is_gone,
    wait_before,
)


def test_the_first_loss_in_a_while_costs_no_time() -> None:
    assert wait_before(0) == 0


def test_the_waits_grow_with_jitter_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_WAIT_S", 0.5)

    waits = [[wait_before(losses) for _ in range(50)] for losses in range(1, 12)]

    assert all(0.25 <= wait <= 0.5 for wait in waits[0])
    assert all(max(earlier) <= 2 * min(later) for earlier, later in pairwise(waits))
    assert all(LONGEST_WAIT_S / 2 <= wait <= LONGEST_WAIT_S for wait in waits[-1])
    assert all(len(set(same)) > 1 for same in waits)


class Clock:
    """A clock that goes on only when somebody works or waits; stands for the module `time`, too."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


class Waiting(threading.Event):
    """An event that is never set, and lets the clock go on instead of waiting."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        """Let the time pass."""
        self._clock.now += timeout or 0.0
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(reconnecting, "time", made)
    monkeypatch.setattr(reconnecting, "FIRST_WAIT_S", 0.5)
    return made


def connect() -> Broker:
    return FakeBroker(FakeServer())


PASSING = [
    ConnectionLost("gone"),
    LimitReached("full"),
    QueueFull("no majority"),
    StreamUnreadable("damaged"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_costs_a_connection_and_is_tried_again(clock: Clock, error: BrokerError) -> None:
    attempts = 0

    def work(_broker: Broker) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise error

    run_with_reconnect(connect, work, Waiting(clock), patience_s=300.0)

    assert attempts == 4


@pytest.mark.parametrize(
    "error",
    [AccessRefused("no"), NameTaken("no"), RequestRefused("no")],
    ids=repr,
)
def test_what_lasts_ends_the_work_at_once(clock: Clock, error: BrokerError) -> None:
    def work(_broker: Broker) -> None:
        raise error

    with pytest.raises(type(error)):
        run_with_reconnect(connect, work, Waiting(clock), patience_s=300.0)

    assert clock.now == 1000.0


def test_a_right_that_is_missing_at_once_ends_the_work_and_one_that_is_taken_later_is_asked_for_again(
    clock: Clock,
) -> None:
    lives_s = [100.0, 0.1]

    def work(_broker: Broker) -> None:
        clock.now += lives_s.pop(0)
        raise AccessRefused("no right")

    with pytest.raises(AccessRefused):
        run_with_reconnect(connect, work, Waiting(clock), patience_s=300.0)

    assert not lives_s


@pytest.mark.parametrize("error", [TopologyMissing("no queue"), Unroutable("no binding")], ids=repr)
def test_a_federation_that_is_gone_is_waited_for_by_whoever_does_not_make_it(error: BrokerError) -> None:
    def work(_broker: Broker) -> None:
        raise error

    with pytest.raises(type(error)):
        run_with_reconnect(connect, work, threading.Event())
    with pytest.raises(ConnectionLost, match=f"the federation was deleted: {error}"):
        until_federation_is_gone(work)(connect())


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_connections_that_end_within_a_second_again_and_again_are_given_up(
    clock: Clock, error: BrokerError
) -> None:
    def work(_broker: Broker) -> None:
        clock.now += 0.9
        raise error

    with pytest.raises(type(error)):
        run_with_reconnect(connect, work, Waiting(clock), patience_s=60.0)

    assert 60.0 <= clock.now - 1000.0 < 60.0 + LONGEST_WAIT_S + 1


def test_a_connection_that_lived_for_longer_begins_a_new_patience(clock: Clock) -> None:
    lives_s = ([0.5] * 5 + [2.0]) * 20

    def work(_broker: Broker) -> None:
        if lives_s:
            clock.now += lives_s.pop()
            raise ConnectionLost("gone")

    run_with_reconnect(connect, work, Waiting(clock), patience_s=60.0)

    assert not lives_s
    assert clock.now - 1000.0 > 5 * 60.0


def test_whoever_is_asked_to_stop_while_it_is_refused_leaves_in_good_order() -> None:
    stop = threading.Event()

    def refused() -> Broker:
        stop.set()
        raise LimitReached("full")

    run_with_reconnect(refused, lambda _: None, stop)

    assert stop.is_set()
