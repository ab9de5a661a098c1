"""Versions that travel to the workers rounded, while the head keeps each one as it is."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_config, a_layout, a_strategy, a_vector, a_version, an_update, values_of
from fake_broker import FakeBroker, FakeServer
from leading import a_server, aggregate, newest, send, versions
from working import TOPOLOGY, CountingTask, Scripted, sent_updates

from fluffle.errors import ConfigError, ConnectionLost, WireError
from fluffle.framing import record_digest
from fluffle.model import MAX_PARAMETERS, Layout, TensorSpec
from fluffle.model_stream import StoredVersion, stored_at_hand
from fluffle.pieces import Body
from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import decode_record, decode_version, encode_copy, encode_version
from fluffle.settings import load_settings
from fluffle.topology import MIB
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.restoring import TERMS_AHEAD, put_back
from fluffle_worker.loop import Worker
from fluffle_worker.spool import Spool

EXACT = a_config(a_strategy(buffer_size=1))
ROUNDED = replace(EXACT, downlink_codec="int8")
VALUES = [0.1, -0.2, 0.3, 0.777]
STATISTIC = TensorSpec("moving_variance", (2,), "float32", "statistic")


def in_head(server: FakeServer, config: AggregatorConfig) -> list[ModelVersion]:
    """Return the versions in the head queue, read as a leader reads them."""
    records = [decode_record(body) for body in server.bodies(config.topology.head.name)]
    return [record for record in records if isinstance(record, ModelVersion)]


def after_updates(config: AggregatorConfig, count: int = 3) -> FakeServer:
    updates = [
        an_update("w", number, base_version=number - 1, values=VALUES) for number in range(1, count + 1)
    ]
    server = a_server(config, *updates)
    aggregate(server, config)
    return server


def test_the_head_has_the_same_bits_as_with_float32_and_the_stream_a_copy_of_each() -> None:
    exact, rounded = after_updates(EXACT), after_updates(ROUNDED)

    kept, read = in_head(rounded, ROUNDED), versions(rounded, ROUNDED)
    assert [one.vector.tobytes() for one in kept] == [one.vector.tobytes() for one in in_head(exact, EXACT)]
    assert [(one.version, one.codec) for one in read] == [(0, "float32"), *((n, "int8") for n in (1, 2, 3))]
    bodies = {record_digest(body): body for body in rounded.bodies(ROUNDED.topology.head.name)[1:]}
    for copy in read[1:]:
        record = decode_version(bodies[copy.copy_of]) if copy.copy_of in bodies else None
        if record:
            assert (copy.rank, copy.applied, copy.folded) == (record.rank, record.applied, record.folded)
            assert 0 < np.abs(copy.vector - record.vector).max() < 0.05


@pytest.mark.parametrize("codec", ["bfloat16", "int8", "bfloat16+zstd", "int8+zstd", "float32+zstd"])
def test_a_copy_comes_back_as_a_whole_version_that_says_what_it_is_a_copy_of(codec: str) -> None:
    record = replace(
        a_version(7, values=VALUES, layout=Layout((*a_layout().tensors, STATISTIC))),
        average=a_vector(0.2, -0.1, 0.25, 0.7),
        average_decay=0.9,
        statistics=np.array([0.1, 1e9], np.float32),
    )
    digest = record_digest(encode_version(record))

    found = decode_version(encode_copy(record, codec, digest))

    assert (found.codec, found.copy_of) == (codec, digest)
    np.testing.assert_allclose(found.vector, record.vector, atol=0.01)
    np.testing.assert_allclose(found.average, record.average, atol=0.01)
    # A statistic is never rounded.
    assert found.statistics.tobytes() == record.statistics.tobytes()
    exact = replace(found, vector=record.vector, average=record.average, statistics=record.statistics)
    same = replace(exact, codec="float32", copy_of="")
    assert encode_version(same) == encode_version(record)


def test_whoever_makes_the_copy_makes_the_same_one() -> None:
    record = a_version(7, values=VALUES)

    copies = {encode_copy(record, "int8", "ab" * 32) for _ in range(5)}

    assert len(copies) == 1
    later = decode_version(encode_copy(replace(record, term=9), "int8", "ab" * 32))
    assert later.vector.tobytes() == decode_version(copies.pop()).vector.tobytes()


def test_a_copy_is_never_read_as_what_a_leader_starts_from() -> None:
    server = after_updates(ROUNDED)
    copy = server.bodies(ROUNDED.topology.models.name)[-1]

    with pytest.raises(WireError, match="field copy_of: expected a record, found a copy of one"):
        decode_record(copy)


def test_no_copy_is_larger_than_a_version_could_be() -> None:
    small = replace(a_version(), layout=a_layout(MAX_PARAMETERS + 1))
    body = encode_copy(small, "int8+zstd", "ab" * 32)

    with pytest.raises(WireError, match=r"field layout: 134217729 trained values.* have no room"):
        decode_version(body)


class DiesBetween(FakeBroker):
    """A connection that is lost when a record is in the head, and its copy not in the stream yet."""

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        if exchange == TOPOLOGY.models_in.name:
            self.close()
            raise ConnectionLost("it died here")
        super().publish(exchange, routing_key, body, headers)


def test_a_leader_that_dies_between_the_record_and_its_copy_is_made_good_by_the_next() -> None:
    server = a_server(ROUNDED, an_update("w", 1, values=VALUES))
    lives: list[FakeBroker] = [DiesBetween(server)]
    with pytest.raises(IndexError):
        aggregate(server, ROUNDED, lambda: lives.pop(0))
    assert [one.version for one in in_head(server, ROUNDED)] == [0, 1]
    assert newest(server, ROUNDED).version == 0

    aggregate(server, ROUNDED)

    read, kept = newest(server, ROUNDED), in_head(server, ROUNDED)[-1]
    assert (read.version, read.codec, read.rank) == (1, "int8", kept.rank)
    assert read.copy_of == record_digest(encode_version(kept))
    assert server.bodies(TOPOLOGY.updates.name) == []


def test_the_last_version_is_exact_for_whoever_keeps_it() -> None:
    config = replace(a_config(a_strategy(buffer_size=1), goal=Goal(max_versions=2)), downlink_codec="int8")

    server = after_updates(config)

    last = newest(server, config)
    assert last.finished
    assert (last.codec, last.copy_of) == ("float32", "")
    assert last.vector.tobytes() == in_head(server, config)[-1].vector.tobytes()


def test_a_worker_measures_its_delta_against_the_copy_that_it_read(tmp_path: Path) -> None:
    layout = Layout.of(CountingTask().initial_weights(0))
    record = replace(a_version(values=[0.1, 0.777], layout=layout), integers=bytes(8))
    copy = encode_copy(record, "int8", record_digest(encode_version(record)))
    base = decode_version(copy).vector
    server = FakeServer(longest_wait_s=0)
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
        broker.publish(TOPOLOGY.models_in.name, "", copy, {})
    stop, task = threading.Event(), CountingTask()
    worker = Worker(
        name="w1",
        task=task,
        topology=TOPOLOGY,
        spool=Spool(tmp_path, worker="w1", max_bytes=MIB),
        stop=stop,
    )

    worker.work(lambda: Scripted(server, lambda _server, _sent: stop.set()))

    [update] = sent_updates(server)
    assert task.started_from == [float(base[0])]
    assert base[0] != np.float32(0.1)
    assert values_of(update.vector) == ((base + np.float32(1)) - base).tolist()


def stored_in(server: FakeServer) -> StoredVersion:
    with FakeBroker(server) as broker:
        found = stored_at_hand(broker, TOPOLOGY)
    assert found
    return found


def test_a_copy_that_is_restored_becomes_a_record_of_its_own_and_never_the_version_itself() -> None:
    server = after_updates(ROUNDED)
    file = stored_in(server)
    del server.queues[TOPOLOGY.head.name]

    with FakeBroker(server) as broker:
        rank = put_back(broker, TOPOLOGY, file)
    send(server, ROUNDED, an_update("w", 3, base_version=2), an_update("w", 4, base_version=3))
    aggregate(server, ROUNDED)

    assert rank == Rank(file.version.term + TERMS_AHEAD, 3)
    restored, after = in_head(server, ROUNDED)[-2:]
    assert (restored.rank, restored.parent) == (rank, file.version.copy_of)
    assert (restored.copy_of, restored.vector.tolist()) == ("", file.version.vector.tolist())
    # What the model contained is known from the copy: the third update counts once.
    assert (after.version, after.updates) == (4, 4)


def test_the_record_itself_goes_to_the_head_where_the_stream_has_but_its_copy() -> None:
    server = after_updates(ROUNDED)
    body = server.bodies(TOPOLOGY.head.name)[-1]
    file = StoredVersion(decode_version(body), body)
    del server.queues[TOPOLOGY.head.name]

    with FakeBroker(server) as broker:
        rank = put_back(broker, TOPOLOGY, file)

    assert rank == file.version.rank
    assert server.bodies(TOPOLOGY.head.name) == [body]


def test_a_leader_with_float32_goes_on_from_one_with_int8_and_the_other_way_round() -> None:
    server = after_updates(ROUNDED)
    send(server, EXACT, an_update("w", 4, base_version=3, values=VALUES))
    aggregate(server, EXACT)
    send(server, EXACT, an_update("w", 5, base_version=4, base_term=3, values=VALUES))
    aggregate(server, ROUNDED)

    assert [(one.version, one.codec) for one in versions(server, EXACT)][3:] == [
        (3, "int8"),
        (4, "float32"),
        (5, "int8"),
    ]
    straight = in_head(after_updates(EXACT, 5), EXACT)[-1]
    assert in_head(server, EXACT)[-1].vector.tobytes() == straight.vector.tobytes()


def test_a_codec_that_leaves_out_is_none_for_versions() -> None:
    with pytest.raises(ConfigError, match="a version needs all of its elements"):
        load_settings(AggregatorSettings, {"downlink_codec": "topk"})
