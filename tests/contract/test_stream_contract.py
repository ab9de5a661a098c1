"""What every Broker promises of head and stream: for FakeBroker and for RabbitBroker on a real node."""

import threading

import pytest
from brokers import A_WHILE_S, SOON_S, Connect, look_into, publish_version, read
from federation import wait_until

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, TopologyMissing
from fluffle.rabbit import RabbitBroker
from fluffle.topology import HEAD_LENGTH, Topology
from fluffle_cli.node import BrokerNode


def test_a_version_reaches_the_head_and_the_stream_with_one_publish(
    broker: Broker, topology: Topology
) -> None:
    publish_version(broker, topology, b"version")

    assert look_into(broker, topology.head.name) == [b"version"]
    assert read(broker, topology, 1, offset="first") == [b"version"]


def test_the_head_keeps_the_newest_and_moments_go_to_it_alone(broker: Broker, topology: Topology) -> None:
    assert HEAD_LENGTH == 6
    for number in range(1, 6):
        broker.publish(topology.head_in.name, "", b"moments %d" % number, {"kind": "moments"})
        publish_version(broker, topology, b"version %d" % number)
        look_into(broker, topology.head.name)

    newest = [part + b" %d" % number for number in (3, 4, 5) for part in (b"moments", b"version")]
    assert look_into(broker, topology.head.name) == newest
    assert look_into(broker, topology.head.name) == newest
    versions = [b"version %d" % number for number in range(1, 6)]
    assert read(broker, topology, 5, offset="first") == versions


def test_a_stream_is_read_from_its_first_message_by_each_reader_anew(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    publish_version(broker, topology, b"1", b"2", b"3")

    reads = [read(reader, topology, 3, offset="first") for reader in (broker, broker, connect())]

    assert reads == [[b"1", b"2", b"3"]] * 3


def test_last_gives_the_newest_message_and_then_those_that_follow(broker: Broker, topology: Topology) -> None:
    publish_version(broker, topology, b"1", b"2")

    with broker.read_stream(topology.models.name, offset="last") as reader:
        assert reader.next_body(SOON_S) == b"2"
        assert reader.next_body(A_WHILE_S) is None
        publish_version(broker, topology, b"3", b"4")

        assert [reader.next_body(SOON_S), reader.next_body(SOON_S)] == [b"3", b"4"]


def test_last_waits_for_the_first_message_of_an_empty_stream(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    writer = connect()
    with broker.read_stream(topology.models.name, offset="last") as reader:
        assert reader.next_body(0) is None
        later = threading.Timer(A_WHILE_S, publish_version, [writer, topology, b"first"])
        later.start()

        assert reader.next_body(SOON_S) == b"first"
    later.join()


def test_a_reader_may_leave_before_the_end(broker: Broker, topology: Topology) -> None:
    publish_version(broker, topology, *(b"%d" % number for number in range(20)))

    for _ in range(20):
        assert read(broker, topology, 1, offset="first") == [b"0"]

    assert read(broker, topology, 1, offset="last") == [b"19"]


def test_a_stream_that_is_not_there_is_missing(broker: Broker, topology: Topology) -> None:
    with (
        pytest.raises(TopologyMissing, match="nowhere"),
        broker.read_stream(f"{topology.federation}.nowhere", offset="last"),
    ):
        pass


def test_rebuilding_empties_the_stream_and_leaves_the_head(broker: Broker, topology: Topology) -> None:
    publish_version(broker, topology, b"old")

    broker.recreate_stream(topology.models)
    publish_version(broker, topology, b"new")

    assert read(broker, topology, 1, offset="first") == [b"new"]
    assert look_into(broker, topology.head.name) == [b"old", b"new"]


def test_who_read_a_stream_that_is_deleted_has_to_start_again(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    reader_broker = connect()
    with reader_broker.read_stream(topology.models.name, offset="last") as reader:
        assert reader.next_body(0) is None

        broker.recreate_stream(topology.models)

        with pytest.raises(ConnectionLost, match=topology.models.name):
            reader.next_body(SOON_S)


def test_what_is_published_unconfirmed_arrives_in_the_stream_of_records_in_its_order(
    broker: Broker, topology: Topology
) -> None:
    sent = [b"%d" % number for number in range(100)]
    for body in sent:
        broker.publish_unconfirmed(topology.records_in.name, "", body, kind="record")

    with broker.read_stream(topology.records.name, offset="first", prefetch=8) as reader:
        found = [reader.next_body(SOON_S) for _ in sent]

    assert found == sent
    assert look_into(broker, topology.head.name) == []


def test_a_recreated_stream_of_records_is_empty_and_takes_what_comes_next(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    broker.publish_unconfirmed(topology.records_in.name, "", b"old")
    broker.recreate_stream(topology.records)

    broker.publish_unconfirmed(topology.records_in.name, "", b"new")

    with connect().read_stream(topology.records.name, offset="first") as reader:
        assert reader.next_body(SOON_S) == b"new"


def test_a_job_in_the_background_that_loses_its_connection_does_not_end_that_of_its_caller(
    broker: Broker, topology: Topology
) -> None:
    failed = threading.Event()

    def fail(background: Broker) -> None:
        background.check(topology)
        failed.set()
        raise ConnectionLost("RabbitMQ does not answer")

    broker.in_background(fail)

    assert failed.wait(SOON_S)
    publish_version(broker, topology, b"version")
    assert look_into(broker, topology.head.name) == [b"version"]


def test_nobody_waits_for_a_job_in_the_background_and_there_is_one_at_a_time(
    node: BrokerNode, topology: Topology
) -> None:
    began, go_on, jobs = threading.Event(), threading.Event(), list[str]()

    def hang(background: Broker) -> None:
        background.check(topology)
        began.set()
        go_on.wait(SOON_S)
        jobs.append("first")

    with RabbitBroker(node.amqp_url, name="leader", heartbeat_s=10) as leader:
        leader.declare(topology)
        leader.in_background(hang)
        assert began.wait(SOON_S)
        leader.in_background(lambda _: jobs.append("second"))

        publish_version(leader, topology, b"version")

        assert jobs == []
        go_on.set()
        wait_until(lambda: jobs == ["first"], "the job to end", deadline_s=SOON_S)
