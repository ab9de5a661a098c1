"""Taking the lead: what a new leader makes of head and stream, in whatever state it finds them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from broken_stream import BrokenStream
from builders import FEDERATION, SIZE, a_config, a_strategy, a_vector, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    a_server,
    aggregate,
    encoded,
    newest,
    publish,
    rejected,
    send,
    take_the_lead,
    unacked,
    versions,
    work_off,
)

from fluffle import topology
from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, StreamUnreadable, TopologyMissing
from fluffle.pieces import Body
from fluffle.record import ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import checksum_of, decode_record, encode_version, moments_pieces, version_pieces
from fluffle.topology import topology_of
from fluffle_aggregator import head
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth, read_head


def in_head(server: FakeServer, config: AggregatorConfig) -> list[str]:
    """Say in short what the head holds."""
    records = [decode_record(body) for body in server.bodies(config.topology.head.name)]
    return [f"{'r' if isinstance(one, ModelVersion) else 'm'}{one.rank.version}" for one in records]


def put_into_head(
    server: FakeServer, config: AggregatorConfig, *records: ModelVersion | MomentsRecord
) -> None:
    with FakeBroker(server) as broker:
        for record in records:
            body = version_pieces(record) if isinstance(record, ModelVersion) else moments_pieces(record)
            broker.publish(config.topology.head_in.name, "", body, {})


def some_moments(version: int, *, term: int = 1) -> MomentsRecord:
    return MomentsRecord("digits", Rank(term, version), {"m": a_vector(*[version] * SIZE)})


class DiesBeforeItsAck(FakeBroker):
    """A connection that is lost when a commit is confirmed and its acks are on their way."""

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        self.close()
        raise ConnectionLost(f"it died before the acks of {list(tags)} arrived")


def test_an_update_in_the_head_that_comes_again_is_acked_and_neither_applied_nor_rejected() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, an_update("w"))
    with DiesBeforeItsAck(server) as broker, pytest.raises(ConnectionLost):
        work_off(take_the_lead(broker, config, Clock()), broker)
    assert newest(server, config).version == 1
    assert encoded(an_update("w")) in unacked(server, config)

    aggregate(server, config)

    assert newest(server, config).version == 1
    assert rejected(server, config) == []
    assert unacked(server, config) == []


def test_a_stream_that_is_behind_the_head_gets_the_version_again() -> None:
    config = a_config()
    server = a_server(config)
    put_into_head(server, config, a_version(7))
    assert newest(server, config).version == 0

    with FakeBroker(server) as broker:
        head = read_head(broker, config.topology, StreamHealth())

    assert head is not None
    assert head.record.version == 7
    assert newest(server, config).version == 7


def test_a_stream_that_is_empty_gets_the_version_again() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, an_update("w"))
    aggregate(server, config)
    with FakeBroker(server) as broker:
        broker.recreate_stream(config.topology.models)

    send(server, config, an_update("w", 2, base_version=1))
    aggregate(server, config)

    assert [one.version for one in versions(server, config)] == [1, 2]


def test_a_head_that_somebody_deleted_is_never_replaced_by_a_version_zero() -> None:
    config = a_config()
    server = a_server(config)
    server.queue(config.topology.head.name).ready.clear()

    with pytest.raises(
        TopologyMissing, match=r"holds version 0 \(term 1\), but the queue digits.head .* deleted"
    ):
        aggregate(server, config)

    assert len(versions(server, config)) == 1


def test_a_new_leader_goes_above_every_term_that_anybody_published_under() -> None:
    config = a_config()
    server = a_server(config)
    with FakeBroker(server) as broker:
        broker.publish(config.topology.models_in.name, "", encode_version(a_version(0, term=5)), {})
        in_stream_only = read_head(broker, config.topology, StreamHealth())
    put_into_head(server, config, some_moments(3, term=9))
    with FakeBroker(server) as broker:
        with_orphans = read_head(broker, config.topology, StreamHealth())

    assert in_stream_only is not None
    assert in_stream_only.term == 5
    assert with_orphans is not None
    assert with_orphans.term == 9


def test_a_version_that_the_stream_alone_has_is_gone_on_from_and_put_into_the_head() -> None:
    config = a_config(a_strategy(buffer_size=1, optimizer="adam"))
    server = a_server(config, an_update("w", 1, values=[1] * SIZE))
    aggregate(server, config)
    whole = list(server.queue(config.topology.head.name).ready)
    # As a message-ttl leaves it that was set later than version 0 was published: the update is acked.
    server.queue(config.topology.head.name).ready.clear()
    server.queue(config.topology.head.name).ready.extend(whole[:-1])

    with FakeBroker(server) as broker:
        head = read_head(broker, config.topology, StreamHealth())

    assert head is not None
    assert head.moments is not None
    assert (head.record.version, head.record.updates) == (1, 1)
    assert set(head.moments.vectors) == {"m", "v"}
    assert server.bodies(config.topology.head.name)[-1] == whole[-1].body
    assert len(versions(server, config)) == 2


def test_a_rounded_copy_that_the_head_lacks_is_not_gone_on_from() -> None:
    config = replace(a_config(a_strategy(buffer_size=1)), downlink_codec="int8")
    server = a_server(config, an_update("w", 1, values=[1] * SIZE))
    aggregate(server, config)
    server.queue(config.topology.head.name).ready.pop()

    with (
        FakeBroker(server) as broker,
        pytest.raises(TopologyMissing, match=r"digits\.head has lost version 1 .*fluffle model restore"),
    ):
        read_head(broker, config.topology, StreamHealth(), "int8")


def test_a_record_of_a_lower_term_that_came_late_is_passed_over() -> None:
    config = a_config()
    server = a_server(config)
    with FakeBroker(server) as broker:
        publish(broker, config, a_version(5, term=3))
        publish(broker, config, a_version(8, term=2))
        head = read_head(broker, config.topology, StreamHealth())

    assert head is not None
    assert head.record.rank == Rank(3, 5)


def test_a_leader_finds_the_moments_of_the_newest_record() -> None:
    config = a_config()
    server = a_server(config)
    record = replace(a_version(1), moments_checksum=checksum_of(some_moments(1)))
    put_into_head(server, config, some_moments(1), record, some_moments(2))

    with FakeBroker(server) as broker:
        head = read_head(broker, config.topology, StreamHealth())

    assert head is not None
    assert head.moments is not None
    assert head.moments.vectors["m"].tolist() == [1.0] * SIZE


def test_moments_of_the_same_rank_that_the_record_does_not_name_are_passed_over() -> None:
    config = a_config()
    server = a_server(config)
    record = replace(a_version(1), moments_checksum=checksum_of(some_moments(1)))
    late = MomentsRecord("digits", Rank(1, 1), {"m": a_vector(9, 9, 9, 9)})
    put_into_head(server, config, some_moments(1), record, late)

    with FakeBroker(server) as broker:
        head = read_head(broker, config.topology, StreamHealth())

    assert head is not None
    assert head.moments is not None
    assert head.moments.vectors["m"].tolist() == [1.0] * SIZE


class LosesItsVersion(FakeBroker):
    """A connection that is lost while a version is on its way."""

    lost = b""

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        if headers.get("kind") == "version":
            self.lost = bytes(body)
            self.close()
            raise ConnectionLost("the version is still on its way")
        super().publish(exchange, routing_key, body, headers)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_version_of_a_leader_counts_for_nothing_when_it_comes_after_the_next_has_begun(
    optimizer: str,
) -> None:
    config = a_config(a_strategy(buffer_size=1, optimizer=optimizer))
    server = a_server(config, an_update("a", values=[1] * SIZE), an_update("b", values=[2] * SIZE))
    with LosesItsVersion(server) as first, pytest.raises(ConnectionLost):
        work_off(take_the_lead(first, config, Clock()), first)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        FakeBroker(server).publish(config.topology.versions_in.name, "", first.lost, {})
        work_off(leader, broker)

    assert [one.rank for one in versions(server, config)] == [Rank(1, 0), Rank(2, 1), Rank(3, 1), Rank(3, 2)]
    assert newest(server, config).terms == (Rank(1, 0), Rank(3, 0))
    assert unacked(server, config) == []


@pytest.mark.parametrize(
    ("found", "left"),
    [
        (["m1", "r1", "m2"], ["r1", "m2", "m1", "r1"]),
        (["r1", "m2", "m1"], ["r1", "m2", "m1", "r1"]),
        (["m2", "m1", "r1"], ["m2", "m1", "r1"]),
        (["r0", "m1", "r1"], ["r0", "m1", "r1"]),
        (["r0", "r1", "m2", "m3"], ["r0", "r1", "m2", "m3"]),
        (["r1", "m2", "m3"], ["r1", "m2", "m3", "r1"]),
        (["m1", "r1", "m2", "m3"], ["m2", "m3", "m1", "r1"]),
        (["r1", "m2", "m3", "m1"], ["m2", "m3", "m1", "r1"]),
        (["r0", "m1"], ["r0", "m1"]),
        (["m1", "r1"], ["m1", "r1"]),
        (["r0", "r1", "r2"], ["r0", "r1", "r2"]),
    ],
)
def test_what_dead_leaders_left_is_what_the_next_publish_pushes_out(
    found: list[str], left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (head, topology):
        monkeypatch.setattr(module, "HEAD_LENGTH", 4)
    config = a_config()
    server = a_server(config, first=False)
    for name in found:
        number = int(name[1])
        put_into_head(server, config, a_version(number) if name[0] == "r" else some_moments(number))

    with FakeBroker(server) as broker:
        read_head(broker, config.topology, StreamHealth())

    assert in_head(server, config) == left


def test_another_server_optimizer_begins_with_moments_of_its_own() -> None:
    # Each leader makes one version, under a term of its own.
    updates = [an_update("w", n, base_version=n - 1, base_term=n) for n in (1, 2, 3, 4)]
    before = a_config(a_strategy(buffer_size=1, optimizer="adam"))
    server = a_server(before, updates[0])
    aggregate(server, before)

    for update, optimizer in zip(updates[1:], ["momentum", "sgd", "adam"], strict=True):
        send(server, before, update)
        aggregate(server, a_config(a_strategy(buffer_size=1, optimizer=optimizer)))

    assert newest(server, before).version == 4
    assert unacked(server, before) == []


def test_moments_that_are_gone_begin_anew_and_the_federation_goes_on() -> None:
    config = a_config(a_strategy(buffer_size=1, optimizer="momentum"))
    server = a_server(config, first=False)
    put_into_head(server, config, replace(a_version(1), moments_checksum=7))
    send(server, config, an_update("w", base_term=1, base_version=1, values=[1] * SIZE))

    aggregate(server, config)

    assert newest(server, config).vector.tolist() == [1.0] * SIZE


def unreadable(server: FakeServer) -> FakeBroker:
    """Return a broker that fails to open the stream of models until it is made anew."""
    return BrokenStream(server, topology_of(FEDERATION).models, StreamUnreadable("damaged"))


def fail_to_read(broker: Broker, config: AggregatorConfig, stream_health: StreamHealth, clock: Clock) -> None:
    for _ in range(3):
        with pytest.raises(StreamUnreadable):
            read_head(broker, config.topology, stream_health)
        clock.seconds += 8


def test_a_stream_that_stays_unreadable_is_made_anew_from_the_head_once() -> None:
    config, clock = a_config(), Clock()
    server = a_server(config)
    stream_health = StreamHealth(clock)
    with unreadable(server) as broker:
        fail_to_read(broker, config, stream_health, clock)

        head = read_head(broker, config.topology, stream_health)

        assert head is not None
        assert [version.rank for version in versions(server, config)] == [head.record.rank]
        assert not stream_health.models.are_final


def test_without_a_head_an_unreadable_stream_is_left_alone_and_says_what_to_do() -> None:
    config, clock = a_config(), Clock()
    server = a_server(config, first=False)
    stream_health = StreamHealth(clock)
    with unreadable(server) as broker:
        fail_to_read(broker, config, stream_health, clock)

        with pytest.raises(TopologyMissing, match="fluffle model restore"):
            read_head(broker, config.topology, stream_health)


def test_failures_far_apart_are_not_taken_for_a_broken_stream() -> None:
    config, clock = a_config(), Clock()
    stream_health = StreamHealth(clock)
    with unreadable(a_server(config)) as broker:
        for _ in range(3):
            with pytest.raises(StreamUnreadable):
                read_head(broker, config.topology, stream_health)
            clock.seconds += 40

        assert not stream_health.models.are_final


def test_a_stream_that_can_be_read_again_is_not_made_anew() -> None:
    config, clock = a_config(), Clock()
    server = a_server(config)
    stream_health = StreamHealth(clock)
    with unreadable(server) as broker:
        for _ in range(2):
            with pytest.raises(StreamUnreadable):
                read_head(broker, config.topology, stream_health)
            clock.seconds += 100
    with FakeBroker(server) as broker:
        read_head(broker, config.topology, stream_health)

    assert not stream_health.models.are_final
