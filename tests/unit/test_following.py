"""Whoever watches a federation reads a record only when an event says that there is a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from builders import FEDERATION, a_version
from working import TOPOLOGY, a_federation, publish_versions

from fluffle.broker import StreamReader
from fluffle.events import Applied, Committed, Event, Happened, Report
from fluffle.fake_broker import FakeBroker, FakeServer
from fluffle.wire import encode_report
from fluffle_cli.following import READ_AT_LEAST_EVERY_S, VersionFollower

COMMITTED = Committed(2, 1, 2, 0, 0, -1, 1.0, 0.1, "")
APPLIED = Applied("w1/r1/1", 0, 0, 1.0, 10, 100, 16)


class Counting(FakeBroker):
    """A connection that counts how often the stream is read."""

    reads = 0

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        self.reads += 1
        with super().read_stream(queue, offset=offset) as reader:
            yield reader


def tell(server: FakeServer, event: Event, *, exchange: str = TOPOLOGY.events.name) -> None:
    report = Report(FEDERATION, "aggregator", "a1", (Happened(1.0, event),))
    with FakeBroker(server) as broker:
        broker.publish_unconfirmed(exchange, "aggregator.a1", encode_report(report))


def test_the_record_is_read_again_when_a_version_was_committed_and_at_most_once_a_second() -> None:
    server, now = a_federation(a_version(1)), 100.0
    broker = Counting(server)
    with broker.listen(TOPOLOGY.events.name, name="test") as listener:
        following = VersionFollower(broker, TOPOLOGY, listener, clock=lambda: now)
        first = following.newest()
        publish_versions(server, a_version(2))
        tell(server, COMMITTED)
        too_soon = following.newest()
        now += 1.0
        then = following.newest()
        now += 5.0
        following.newest()

    assert first is not None
    assert too_soon is first
    assert then is not None
    assert then.version == 2
    assert broker.reads == 2


def test_what_is_no_commit_and_what_a_worker_says_of_one_let_nobody_read_a_record() -> None:
    server, now = a_federation(a_version(1)), 100.0
    broker = Counting(server)
    with broker.listen(TOPOLOGY.events.name, name="test") as listener:
        following = VersionFollower(broker, TOPOLOGY, listener, clock=lambda: now)
        following.newest()
        tell(server, APPLIED)
        tell(server, COMMITTED, exchange=TOPOLOGY.member_events_in.name)
        with FakeBroker(server) as stranger:
            stranger.publish_unconfirmed(TOPOLOGY.events.name, "aggregator.a1", b"rubbish")
        now += 5.0
        following.newest()

    assert broker.reads == 1


def test_a_version_that_nobody_tells_of_is_seen_after_a_while_all_the_same() -> None:
    server, now = a_federation(a_version(1)), 100.0
    broker = Counting(server)
    with broker.listen(TOPOLOGY.events.name, name="test") as listener:
        following = VersionFollower(broker, TOPOLOGY, listener, clock=lambda: now)
        following.newest()
        publish_versions(server, a_version(2))
        now += READ_AT_LEAST_EVERY_S
        newest = following.newest()

    assert newest is not None
    assert newest.version == 2


def test_without_a_listener_the_record_is_read_at_every_look() -> None:
    server = a_federation(a_version(1))
    broker = Counting(server)
    following = VersionFollower(broker, TOPOLOGY, None)

    following.newest()
    newest = following.newest()

    assert broker.reads == 2
    assert newest is not None
    assert newest.vector.size == 0
    assert newest.layout.size == 4
