"""Reading versions from the stream: the newest one, the newer one, all of them."""

import threading

import pytest
from brokers import all_versions
from builders import a_version, an_update
from fake_broker import FakeBroker, FakeServer
from working import TOPOLOGY, a_federation, later, publish_versions

from fluffle.model_stream import MOST_IN_A_CHUNK, newest_version, version_at_hand
from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import encode_version
from fluffle.wire import encode_update


def newest(server: FakeServer, *, newer_than: Rank | None = None) -> Rank | None:
    with FakeBroker(server) as broker:
        found = newest_version(broker, TOPOLOGY, stop=threading.Event(), newer_than=newer_than)
    return found.rank if found else None


def a_burst(*versions: ModelVersion) -> FakeServer:
    """Return a server where version 1 of term 2 is there, and these come a moment later."""
    server = a_federation(a_version(1, term=2))
    server.longest_wait_s = 5.0
    later(lambda: publish_versions(server, *versions))
    return server


def test_the_newest_version_is_the_last_one() -> None:
    assert newest(a_federation(a_version(0), a_version(1), a_version(2))) == Rank(1, 2)


def test_whoever_has_the_newest_waits_for_the_next() -> None:
    server = a_burst(a_version(2, term=2))

    assert newest(server, newer_than=Rank(2, 1)) == Rank(2, 2)


def test_of_a_burst_the_highest_term_wins_wherever_it_stands() -> None:
    server = a_burst(a_version(5, term=3), a_version(9, term=2))

    assert newest(server, newer_than=Rank(2, 1)) == Rank(3, 5)


def test_where_versions_are_made_without_a_pause_nobody_reads_on_for_ever() -> None:
    server = a_burst(*(a_version(number, term=2) for number in range(2, 200)))

    found = newest(server, newer_than=Rank(2, 1))

    assert found is not None
    assert Rank(2, 1) < found < Rank(2, 199)


def test_reading_on_in_parts_passes_over_none() -> None:
    server = a_burst(*(a_version(number, term=2) for number in range(2, MOST_IN_A_CHUNK + 2)))

    found = newest(server, newer_than=Rank(2, MOST_IN_A_CHUNK))

    assert found == Rank(2, MOST_IN_A_CHUNK + 1)


def test_nobody_waits_longer_than_until_asked_to_stop() -> None:
    stop = threading.Event()
    stop.set()

    with FakeBroker(a_federation()) as broker:
        assert newest_version(broker, TOPOLOGY, stop=stop) is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_at_hand_is_the_newest_or_nothing(count: int) -> None:
    server = a_federation(*(a_version(number) for number in range(count)))

    with FakeBroker(server) as broker:
        found = version_at_hand(broker, TOPOLOGY)

    assert (found.version if found else None) == (count - 1 if count else None)


def test_what_only_claims_to_be_the_newest_is_passed_over() -> None:
    server = a_federation(a_version(1, term=2))
    server.longest_wait_s = 5.0
    damaged = bytearray(encode_version(a_version(3, term=2)))
    damaged[-1] ^= 1

    def publish_a_burst() -> None:
        publish_versions(server, a_version(2, term=2))
        with FakeBroker(server) as broker:
            for body in (bytes(damaged), encode_update(an_update("w1")), b"", b"\x81\xa4term"):
                broker.publish(TOPOLOGY.models_in.name, "", body, {})

    later(publish_a_burst)

    assert newest(server, newer_than=Rank(2, 1)) == Rank(2, 2)


def test_more_than_is_kept_aside_hides_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluffle.model_stream.MOST_BYTES_ASIDE", 0)

    server = a_burst(a_version(3, term=2), a_version(4, term=1), a_version(2, term=2))

    assert newest(server, newer_than=Rank(2, 1)) == Rank(2, 3)


def test_the_history_leaves_out_what_a_leader_published_that_had_lost_the_lead() -> None:
    server = a_federation(
        a_version(0, term=1),
        a_version(1, term=1),
        a_version(1, term=2),
        a_version(2, term=1),
        a_version(2, term=2),
    )

    with FakeBroker(server) as broker:
        ranks = [version.rank for version in all_versions(broker, TOPOLOGY)]

    assert ranks == [Rank(1, 0), Rank(1, 1), Rank(2, 1), Rank(2, 2)]
