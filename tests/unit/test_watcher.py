"""A watcher reads a record only when there is news, and believes only those who may say it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from builders import FEDERATION, a_version
from fake_broker import FakeBroker, FakeServer
from working import TOPOLOGY, a_federation, publish_versions

from fluffle import model_stream
from fluffle.broker import Delivery, Listener, StreamReader
from fluffle.errors import AccessRefused
from fluffle.events import Applied, Committed, Event, Happened, Joined, Report, Role, Started
from fluffle.wire import encode_report
from fluffle_cli.watching import watcher as watcher_module
from fluffle_cli.watching.watcher import Watcher, believable

COMMITTED = Committed(2, 1, 0.1, 1.0, 0, -1)
APPLIED = Applied(0, 1.0, 10, 100, 16)


class Counting(FakeBroker):
    """A connection that counts how often the stream is read."""

    reads = 0

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, **more: int) -> Iterator[StreamReader]:
        self.reads += 1
        with super().read_stream(queue, offset=offset, **more) as reader:
            yield reader


class Deaf(Counting):
    """A connection of a user without the right to listen."""

    @contextmanager
    def listen(self, exchange: str, *, name: str, **more: int) -> Iterator[Listener]:
        if exchange == TOPOLOGY.events.name:
            raise AccessRefused("no right")
        with super().listen(exchange, name=name, **more) as listener:
            yield listener


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(watcher_module, "SHARE_OF_READING", 0)


def a_watcher() -> Watcher:
    return Watcher(TOPOLOGY, name="test", past_mib=0)


def version_of(watcher: Watcher) -> int | None:
    newest = watcher.view().newest
    return newest.version if newest else None


def tell(
    server: FakeServer, event: Event, *, exchange: str = TOPOLOGY.events.name, role: Role = "aggregator"
) -> None:
    report = Report(FEDERATION, role, "a1", (Happened(1.0, event),))
    with FakeBroker(server) as broker:
        broker.publish_unconfirmed(exchange, f"{role}.a1", encode_report(report))


def heard(role: Role, name: str, *, exchange: str, user: str | None, federation: str = "digits") -> Delivery:
    body = encode_report(Report(federation, role, name, (Happened(0.0, Joined()),)))
    return Delivery(1, body, 0, user, exchange)


def test_a_member_may_report_of_itself_only_and_an_aggregator_is_known_by_its_exchange() -> None:
    members, leaders = TOPOLOGY.member_events_in.name, TOPOLOGY.events.name

    believed = {
        "itself": heard("worker", "w1", exchange=members, user="w1"),
        "evaluator": heard("evaluator", "e", exchange=members, user="e"),
        "leader": heard("aggregator", "a1", exchange=leaders, user="aggregator"),
    }
    passed_over = {
        "another": heard("worker", "w2", exchange=members, user="w1"),
        "nobody": heard("worker", "w1", exchange=members, user=None),
        "a worker as aggregator": heard("aggregator", "w1", exchange=members, user="w1"),
        "another federation": heard("worker", "w1", exchange=members, user="w1", federation="other"),
        "rubbish": Delivery(1, b"rubbish", 0, "w1", members),
    }

    assert all(believable(delivery, TOPOLOGY) for delivery in believed.values())
    assert not any(believable(delivery, TOPOLOGY) for delivery in passed_over.values())


def test_a_record_is_read_again_when_a_version_was_committed() -> None:
    server = a_federation(a_version(1))
    broker, watcher = Counting(server), a_watcher()

    looks = watcher.follow(broker, threading.Event(), every_s=0.05)
    next(looks)
    first = version_of(watcher)
    publish_versions(server, a_version(2))
    tell(server, COMMITTED)
    next(looks)
    then = version_of(watcher)
    next(looks)

    assert (first, then, broker.reads) == (1, 2, 2)


def test_each_believable_report_is_passed_on() -> None:
    server = a_federation(a_version(1))
    heard_events: list[Event] = []
    watcher = Watcher(
        TOPOLOGY,
        name="test",
        past_mib=0,
        on_report=lambda report: heard_events.extend(each.event for each in report.events),
    )

    looks = watcher.follow(FakeBroker(server), threading.Event(), every_s=0.05)
    next(looks)
    tell(server, APPLIED)
    tell(server, COMMITTED, exchange=TOPOLOGY.member_events_in.name)
    next(looks)

    assert heard_events == [APPLIED]


def test_other_events_and_a_commit_that_a_worker_claims_cause_no_reading() -> None:
    server = a_federation(a_version(1))
    broker, watcher = Counting(server), a_watcher()

    looks = watcher.follow(broker, threading.Event(), every_s=0.05)
    next(looks)
    tell(server, APPLIED)
    tell(server, COMMITTED, exchange=TOPOLOGY.member_events_in.name)
    tell(server, Started(1), role="worker")
    with FakeBroker(server) as stranger:
        stranger.publish_unconfirmed(TOPOLOGY.events.name, "aggregator.a1", b"rubbish")
    next(looks)

    assert broker.reads == 1
    assert watcher.view().workers["a1"].state == "training: from version 1"


def test_a_version_whose_event_was_lost_is_read_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "READ_WITHOUT_NEWS_EVERY_S", 0.02)
    server, watcher = a_federation(a_version(1)), a_watcher()

    looks = watcher.follow(Counting(server), threading.Event(), every_s=0.05)
    next(looks)
    publish_versions(server, a_version(2))
    next(looks)

    assert version_of(watcher) == 2


def test_a_user_without_the_right_to_listen_reads_the_record_at_every_look() -> None:
    broker, watcher = Deaf(a_federation(a_version(1))), a_watcher()

    looks = watcher.follow(broker, threading.Event(), every_s=0.01, must_listen=False)
    for _ in range(3):
        next(looks)

    assert broker.reads == 3
    with pytest.raises(AccessRefused):
        next(watcher.follow(broker, threading.Event()))


def test_reading_a_large_record_takes_a_twentieth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "SHARE_OF_READING", 10**6)
    server = a_federation(a_version(1))
    server.longest_wait_s = 1.0
    broker, watcher = Counting(server), a_watcher()

    looks = watcher.follow(broker, threading.Event(), every_s=0.05)
    next(looks)
    tell(server, COMMITTED)
    next(looks)

    assert broker.reads == 1


def test_the_wait_for_the_end_of_a_stream_does_not_count_as_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_s = 0.3
    monkeypatch.setattr(model_stream, "QUIET_S", quiet_s)
    monkeypatch.setattr(watcher_module, "QUIET_S", quiet_s)
    monkeypatch.setattr(watcher_module, "SHARE_OF_READING", 2)
    server = a_federation(a_version(1))
    server.longest_wait_s = 1.0
    broker, watcher = Counting(server), a_watcher()

    looks = watcher.follow(broker, threading.Event(), every_s=2 * quiet_s)
    next(looks)
    tell(server, COMMITTED)
    next(looks)

    assert broker.reads == 2
