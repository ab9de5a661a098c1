"""`fluffle model restore`: what it puts where, and what it refuses."""

from dataclasses import replace

import pytest
from builders import a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import a_server, aggregate, newest, publish, rejected, send, unacked, versions

from fluffle.errors import ConfigError
from fluffle.framing import record_digest
from fluffle.model_stream import StoredVersion, stored_at_hand
from fluffle.privacy.plan import PrivacyState
from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import encode_version
from fluffle_aggregator.config import AggregatorConfig
from fluffle_cli.restoring import TERMS_AHEAD, put_back

CHARGE = a_config(a_strategy(buffer_size=1))
TOPOLOGY = CHARGE.topology


def stored(version: ModelVersion) -> StoredVersion:
    return StoredVersion(version, encode_version(version))


def in_stream(server: FakeServer) -> StoredVersion:
    with FakeBroker(server) as broker:
        found = stored_at_hand(broker, TOPOLOGY)
    assert found is not None
    return found


def restore(server: FakeServer, file: StoredVersion) -> Rank:
    with FakeBroker(server) as broker:
        return put_back(broker, TOPOLOGY, file)


def a_trained_server(config: AggregatorConfig = CHARGE) -> FakeServer:
    """Return a server with a few versions, and no head queue."""
    server = a_server(config, *(an_update("w", n, base_version=n - 1) for n in (1, 2, 3)))
    aggregate(server, config)
    assert newest(server, config).version == 3
    del server.queues[TOPOLOGY.head.name]
    return server


def test_the_newest_version_of_the_stream_goes_to_the_head_as_it_is_and_a_leader_knows_what_it_contains() -> (
    None
):
    server = a_trained_server()
    file = in_stream(server)

    rank = restore(server, file)
    send(server, CHARGE, an_update("w", 2, base_version=1), an_update("w", 4, base_version=3))
    aggregate(server, CHARGE)

    assert rank == file.version.rank
    assert [one.version for one in versions(server, CHARGE)] == [0, 1, 2, 3, 4]
    assert newest(server, CHARGE).parent == record_digest(file.body)
    assert [headers["reason"] for headers in rejected(server, CHARGE)] == ["duplicate"]
    assert unacked(server, CHARGE) == []


def test_on_a_new_broker_it_goes_to_head_and_stream_above_all_that_came_after_the_file() -> None:
    file = in_stream(a_trained_server())
    server = FakeServer(longest_wait_s=0)

    rank = restore(server, file)
    send(server, CHARGE, an_update("w", 2, base_version=1), an_update("w", 4, base_version=3))
    aggregate(server, CHARGE)

    assert rank == Rank(file.version.term + TERMS_AHEAD, 3)
    restored, after = versions(server, CHARGE)
    assert (restored.rank, restored.parent, restored.folded) == (rank, record_digest(file.body), ())
    assert restored.vector.tolist() == file.version.vector.tolist()
    assert after.rank == Rank(rank.term + 1, 4)
    assert after.parent == record_digest(encode_version(restored))
    assert [headers["reason"] for headers in rejected(server, CHARGE)] == ["duplicate"]


def test_a_version_zero_that_somebody_began_on_the_new_broker_does_not_stand_in_the_way() -> None:
    file = in_stream(a_trained_server())
    server = a_server(CHARGE)

    rank = restore(server, file)
    send(server, CHARGE, an_update("w", 4, base_version=3))
    aggregate(server, CHARGE)

    assert rank == Rank(file.version.term + TERMS_AHEAD, 3)
    assert newest(server, CHARGE).rank == Rank(rank.term + 1, 4)


def test_moments_that_are_not_in_the_file_begin_anew_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = a_config(a_strategy(buffer_size=1, optimizer="adam"))
    server = a_trained_server(config)
    file = in_stream(server)
    assert file.version.moments_checksum is not None

    restore(server, file)
    send(server, config, an_update("w", 4, base_version=3))
    aggregate(server, config)

    assert newest(server, config).version == 4
    assert "the strategy begins anew: its moments are gone" in caplog.text


def test_a_head_that_has_the_version_or_a_newer_one_is_left_alone() -> None:
    server = a_server(CHARGE)
    with FakeBroker(server) as broker:
        publish(broker, CHARGE, a_version(5, term=2))
    before = server.bodies(TOPOLOGY.head.name)

    for file in (a_version(5, term=2), a_version(9, term=1)):
        with pytest.raises(ConfigError, match=r"digits.head holds version 5 \(term 2\), and the file"):
            restore(server, stored(file))

    assert server.bodies(TOPOLOGY.head.name) == before


def test_a_stream_with_a_newer_version_is_never_taken_back() -> None:
    server = a_trained_server()

    with pytest.raises(ConfigError, match=r"holds version 3 \(term 2\), newer than the file's 2 \(term 2\)"):
        restore(server, stored(a_version(2, term=2)))

    assert server.bodies(TOPOLOGY.head.name) == []


def test_another_version_of_the_same_rank_is_another_federations() -> None:
    server = a_trained_server()
    twin = replace(in_stream(server).version, strategy="another")

    with pytest.raises(ConfigError, match="another federation of the same name"):
        restore(server, stored(twin))

    assert server.bodies(TOPOLOGY.head.name) == []


def test_a_file_of_another_federation_is_refused_with_the_flag_to_give() -> None:
    server = FakeServer(longest_wait_s=0)

    with pytest.raises(ConfigError, match=r"a version of 'ward-7', not of 'digits'.*--federation ward-7"):
        restore(server, stored(replace(a_version(3), federation="ward-7")))

    assert server.queues == {}


def test_an_aggregator_at_work_is_not_restored_under(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluffle_cli.restoring.LEAVING_S", 0.0)
    server = a_trained_server()
    file = in_stream(server)

    with FakeBroker(server) as leader:
        leader.consume(TOPOLOGY.updates.name, prefetch=1)
        with pytest.raises(ConfigError, match="Stop every aggregator first"):
            restore(server, file)

    assert server.bodies(TOPOLOGY.head.name) == []


def test_no_version_with_a_promise_is_put_back_that_others_may_have_come_after() -> None:
    server = a_server(CHARGE, first=False)
    version = replace(a_version(3), privacy=PrivacyState(commitment="ab"))

    with pytest.raises(ConfigError, match="later versions have shown of the workers would not be counted"):
        restore(server, stored(version))
