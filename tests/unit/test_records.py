"""The stream of records: each version without its weights, for everything that watches."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from broken_stream import BrokenStream
from brokers import commit
from builders import FEDERATION, SIZE, a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import Clock, a_server, aggregate, newest, send, take_the_lead, versions, work_off

from fluffle.broker import StreamReader
from fluffle.errors import AccessRefused, ConnectionLost, StreamUnreadable, WireError
from fluffle.framing import record_digest
from fluffle.model_stream import MOST_IN_A_CHUNK, MissingRecords, all_records, record_at_hand
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_without_weights, encode_copy, encode_version, without_weights
from fluffle.topology import topology_of
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth, read_head
from fluffle_aggregator.head_keeper import LOOK_AT_RECORDS_EVERY_S

TOPOLOGY = topology_of(FEDERATION)


def a_leaders_config() -> AggregatorConfig:
    return a_config(a_strategy(buffer_size=1))


def in_records(server: FakeServer) -> list[ModelVersion]:
    """Return the records that are newer than all before, as readers do."""
    found: list[ModelVersion] = []
    for body in server.bodies(TOPOLOGY.records.name):
        record = decode_without_weights(body)
        if not found or record.rank > found[-1].rank:
            found.append(record)
    return found


def lose_the_last(server: FakeServer, count: int) -> None:
    """Lose records as a power cut does."""
    for _ in range(count):
        server.queue(TOPOLOGY.records.name).ready.pop()


def gaps(records: list[ModelVersion]) -> list[int]:
    """Return the versions before which records are missing."""
    missing = MissingRecords()
    return [record.version for record in records if missing.are_before(record)]


def test_a_record_says_all_that_its_version_does_but_the_weights() -> None:
    version = replace(a_version(3), parent="p" * 64)
    body = encode_version(version)

    record = decode_without_weights(without_weights(body))

    assert record.vector.size == record.average.size == record.statistics.size == len(record.integers) == 0
    assert record.copy_of == record_digest(body)
    bare, found = replace(version, integers=b""), replace(record, copy_of="")
    fields = set(ModelVersion.__dataclass_fields__) - {"vector", "average", "statistics"}
    assert {name: getattr(found, name) for name in fields} == {name: getattr(bare, name) for name in fields}


@pytest.mark.parametrize(
    "body",
    [
        encode_version(a_version(1)),
        without_weights(encode_version(a_version(1)))[:-1],
        without_weights(encode_version(a_version(1))) + b"x",
        without_weights(encode_copy(a_version(1), "int8", "digest")),
        b"",
        b"\x80",
    ],
)
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_without_weights(body)


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_each_commit_publishes_a_record_and_each_record_names_the_one_before(codec: str) -> None:
    config = replace(a_leaders_config(), downlink_codec=codec)
    server = a_server(config, *(an_update("w", sequence) for sequence in (1, 2, 3)))

    aggregate(server, config)

    records = in_records(server)
    assert [one.rank for one in records] == [one.rank for one in versions(server, config)]
    assert [one.parent for one in records[1:]] == [one.copy_of for one in records[:-1]]
    assert {one.codec for one in records} == {"float32"}
    assert gaps(records) == []


def test_a_leader_that_dies_between_head_and_records_leaves_the_record_to_its_successor() -> None:
    class DiesBeforeTheRecord(FakeBroker):
        def publish_unconfirmed(
            self, exchange: str, routing_key: str, body: bytes, *, kind: str = "events"
        ) -> None:
            raise ConnectionLost("killed")

    config = a_leaders_config()
    server = a_server(config, an_update("w"))
    with DiesBeforeTheRecord(server) as broker, pytest.raises(ConnectionLost):
        work_off(take_the_lead(broker, config, Clock()), broker)
    before = [record.version for record in in_records(server)]

    aggregate(server, config)

    assert newest(server, config).version == 1
    assert before == [0]
    assert [record.version for record in in_records(server)] == [0, 1]


def test_readers_pass_over_a_record_that_a_new_leader_publishes_again() -> None:
    config = a_leaders_config()
    server = a_server(config, an_update("w"))
    aggregate(server, config)

    aggregate(server, config)

    assert [record.version for record in in_records(server)] == [0, 1]


def test_a_leader_takes_over_without_reading_the_records() -> None:
    server = a_server(a_leaders_config())
    with BrokenStream(server, TOPOLOGY.records, ConnectionLost("crashed")) as broker:
        assert read_head(broker, TOPOLOGY, StreamHealth()) is not None
        assert broker.is_damaged


def test_a_leader_works_on_while_the_records_cannot_be_read_and_recreates_their_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, clock = a_leaders_config(), Clock()
    server = a_server(config, an_update("w", 1))
    with BrokenStream(server, TOPOLOGY.records, StreamUnreadable("damaged")) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        assert newest(server, config).version == 1
        for _ in range(4):
            clock.seconds += 10.0
            leader.look_after_head()

        assert not broker.is_damaged
        assert [record.version for record in in_records(server)] == [1]

    assert "recreating the stream of records" in caplog.text


def test_a_leader_commits_without_a_stream_of_records_until_somebody_notices_that_it_is_gone() -> None:
    config, clock = a_leaders_config(), Clock()
    server = a_server(config, an_update("w", 1))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        del server.queues[TOPOLOGY.records.name]
        clock.seconds += LOOK_AT_RECORDS_EVERY_S
        leader.look_after_head()

        work_off(leader, broker)

    assert newest(server, config).version == 1


def test_a_leader_publishes_the_newest_record_again_when_the_stream_has_lost_it() -> None:
    config, clock = a_leaders_config(), Clock()
    server = a_server(config, an_update("w", 1), an_update("w", 2))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        lose_the_last(server, 2)

        clock.seconds += LOOK_AT_RECORDS_EVERY_S
        leader.look_after_head()

    records = in_records(server)
    assert [record.version for record in records] == [0, 2]
    assert gaps(records) == [2]


def test_records_that_are_lost_in_between_are_noticed_and_their_successors_are_not() -> None:
    config = a_leaders_config()
    server = a_server(config, *(an_update("w", sequence) for sequence in (1, 2, 3)))
    aggregate(server, config)
    lose_the_last(server, 2)
    send(server, config, an_update("w", 4))

    aggregate(server, config)

    with FakeBroker(server) as broker:
        records = list(all_records(broker, TOPOLOGY))
    # The successor has published the newest one, 3, again: 2 is gone for good.
    assert [record.version for record in records] == [0, 1, 3, 4]
    assert gaps(records) == [3]


def test_records_that_come_twice_or_late_are_left_out() -> None:
    server, ranks = FakeServer(longest_wait_s=0), [(0, 1), (1, 1), (1, 1), (2, 2), (2, 1), (3, 2)]
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
        commit(broker, TOPOLOGY, *(a_version(version, term=term) for version, term in ranks))

        found = [(record.version, record.term) for record in all_records(broker, TOPOLOGY)]

    assert found == [(0, 1), (1, 1), (2, 2), (3, 2)]


def test_the_newest_record_is_read_without_a_look_at_the_models() -> None:
    config = a_leaders_config()
    server = a_server(config, an_update("w"))
    aggregate(server, config)
    with MonitorsBroker(server) as broker:
        record = record_at_hand(broker, TOPOLOGY)
        numbers = [each.version for each in all_records(broker, TOPOLOGY)]

    assert record is not None
    assert record.version == 1
    assert record.layout.size == SIZE
    assert numbers == [0, 1]


class BrokerOfRecords(FakeBroker):
    """A broker on which a version is published for each record that is read, up to so many."""

    def __init__(self, server: FakeServer, *, most: float) -> None:
        super().__init__(server)
        self._most = most

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        """See Broker."""
        with super().read_stream(queue, offset=offset, prefetch=prefetch) as reader:
            yield PublishesMeanwhile(self, reader, self._most)


class PublishesMeanwhile:
    """Reads a stream that grows as it is read."""

    def __init__(self, broker: FakeBroker, reader: StreamReader, most: float) -> None:
        self._broker, self._reader, self._most, self.taken = broker, reader, most, 0
        self._began = time.monotonic()

    def next_body(self, timeout_s: float) -> bytes | None:
        """See StreamReader."""
        self.taken += 1
        assert time.monotonic() - self._began < 20, "it reads on and on"
        if self.taken <= self._most:
            commit(self._broker, TOPOLOGY, a_version(self.taken))
        return self._reader.next_body(timeout_s)


def test_a_burst_of_records_is_read_to_its_end() -> None:
    with BrokerOfRecords(FakeServer(longest_wait_s=0), most=10 * MOST_IN_A_CHUNK) as broker:
        broker.declare(TOPOLOGY)
        commit(broker, TOPOLOGY, a_version(0))

        record = record_at_hand(broker, TOPOLOGY)

    assert record is not None
    assert record.version == 10 * MOST_IN_A_CHUNK


def test_a_record_is_at_hand_though_versions_come_without_end() -> None:
    with BrokerOfRecords(FakeServer(longest_wait_s=0), most=math.inf) as broker:
        broker.declare(TOPOLOGY)
        commit(broker, TOPOLOGY, a_version(0))

        record = record_at_hand(broker, TOPOLOGY)

    assert record is not None
    assert record.version > 10


class MonitorsBroker(FakeBroker):
    """The connection of a user who may read the records and nothing else."""

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        """See Broker."""
        if queue != TOPOLOGY.records.name:
            raise AccessRefused(f"no right to {queue}")
        with super().read_stream(queue, offset=offset, prefetch=prefetch) as reader:
            yield reader
