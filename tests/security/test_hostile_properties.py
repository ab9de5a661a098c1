"""Properties that only an attacker puts on a message: the aggregator keeps its connection and goes on."""

import struct
import threading
from collections.abc import Mapping
from dataclasses import replace

import pika
import pytest
from amqp_bytes import entry, nested, nested_lists, raw, table, with_headers, with_message_id
from brokers import receive
from builders import a_config, a_strategy, a_version, an_update
from federation import DEADLINE_S, wait_until

from fluffle.model_stream import version_at_hand
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle.wire import encode_update
from fluffle_aggregator.service import serve
from fluffle_cli.node import BrokerNode

YEAR_146_BILLION = struct.pack(">Q", 2**62)
READABLE: Mapping[str, pika.BasicProperties] = {
    "no user": pika.BasicProperties(),
    "a key twice": with_headers(entry(b"a", b"V", b""), entry(b"a", b"V", b"")),
    "a key and a text that are no UTF-8": with_headers(
        entry(b"\xff", b"S", struct.pack(">I", 2) + b"\xff\xfe")
    ),
    "a message id that is no UTF-8": with_message_id(b"\xff\xfe"),
    "a count that is a map": with_headers(entry(b"x-delivery-count", b"F", table())),
    "a count that is a text": with_headers(entry(b"x-delivery-count", b"S", struct.pack(">I", 3) + b"abc")),
    "a negative count": with_headers(entry(b"x-delivery-count", b"l", struct.pack(">q", -5))),
    "an absurd count": with_headers(entry(b"x-delivery-count", b"l", struct.pack(">q", 2**62))),
    "another content type": pika.BasicProperties(content_type="\n" * 255, type="x" * 255, app_id="🐇" * 63),
}
# RabbitMQ passes these on, and pika raises over them.
UNREADABLE: Mapping[str, pika.BasicProperties] = {
    "a time beyond the year 9999": with_headers(entry(b"a", b"T", YEAR_146_BILLION)),
    "2,000 tables in each other": with_headers(nested(2000)),
    "2,000 lists in each other": with_headers(nested_lists(2000)),
    "16,000 tables in each other": with_headers(nested(16_000)),
}
HOSTILE: Mapping[str, pika.BasicProperties] = {**READABLE, **UNREADABLE}
# RabbitMQ closes the connection of whoever sends these: no consumer ever sees them.
REFUSED_BY_RABBITMQ: Mapping[str, pika.BasicProperties] = {
    "a header that is not a number": with_headers(entry(b"a", b"d", struct.pack(">d", float("nan")))),
    "an unknown type": with_headers(entry(b"a", b"Z", b"")),
    "a table longer than the frame": raw(struct.pack(">HI", pika.BasicProperties.FLAG_HEADERS, 99)),
}


def publish(node: BrokerNode, topology: Topology, properties: pika.BasicProperties, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(topology.updates_in.name, "", body, properties)


def connect(node: BrokerNode, *, speaks_for: str | None = None) -> RabbitBroker:
    return RabbitBroker(node.amqp_url, name="hostile", heartbeat_s=20, speaks_for=speaks_for)


def test_hostile_properties_cost_the_aggregator_neither_its_connection_nor_a_good_update(
    node: BrokerNode, topology: Topology
) -> None:
    strategy = a_strategy(buffer_size=1)
    first = replace(a_version(), federation=topology.federation)
    config = replace(a_config(strategy, first=first), topology=topology)
    connections: list[RabbitBroker] = []
    stop = threading.Event()

    def connect_and_count() -> RabbitBroker:
        connections.append(connect(node))
        return connections[-1]

    with connect(node) as broker:
        broker.declare(topology)
        claim = an_update("honest", 1, federation=topology.federation)
        for properties in HOSTILE.values():
            publish(node, topology, properties, encode_update(claim))
            publish(node, topology, properties, b"")
        with connect(node, speaks_for="honest") as worker:
            worker.publish(topology.updates_in.name, "", encode_update(claim), {"kind": "update"})

        aggregator = threading.Thread(target=serve, args=(config, connect_and_count, stop))
        aggregator.start()
        try:
            wait_until(
                lambda: broker.state(topology.rejected.name).messages == 2 * len(HOSTILE),
                "every hostile message to be refused",
            )
            wait_until(
                lambda: (version_at_hand(broker, topology) or first).version == 1, "the good update's version"
            )
        finally:
            stop.set()
            aggregator.join()

        newest = version_at_hand(broker, topology)
        broker.consume(topology.rejected.name, prefetch=2 * len(HOSTILE))
        refused = receive(broker, 2 * len(HOSTILE))

    assert newest is not None
    assert newest.vector.tolist() == [1.0] * 4
    assert newest.updates == 1
    assert len(connections) == 1
    reasons = [delivery.headers["reason"] for delivery in refused]
    assert reasons == ["foreign-sender", "unreadable"] * len(HOSTILE)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_headers_do_not_hide_that_a_message_came_before(
    node: BrokerNode, topology: Topology, kind: str
) -> None:
    # RabbitMQ takes quadratic time for tables in tables: seconds for 16,000, and more on a busy machine.
    with connect(node) as broker:
        broker.declare(topology)
        publish(node, topology, UNREADABLE[kind], b"body")
        broker.consume(topology.updates.name, prefetch=1)
        first = broker.next_delivery(DEADLINE_S)
    with connect(node) as standby:
        standby.consume(topology.updates.name, prefetch=1)
        second = standby.next_delivery(DEADLINE_S)

    assert first is not None
    assert second is not None
    assert (first.body, first.redeliveries, first.user, first.headers) == (b"body", 0, None, {})
    assert second.redeliveries >= 2


@pytest.mark.parametrize("kind", REFUSED_BY_RABBITMQ)
def test_what_is_no_property_at_all_never_gets_past_rabbitmq(
    node: BrokerNode, topology: Topology, kind: str
) -> None:
    with connect(node) as broker:
        broker.declare(topology)
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="INTERNAL_ERROR"):
            publish(node, topology, REFUSED_BY_RABBITMQ[kind], b"body")

        assert broker.state(topology.updates.name).messages == 0
