"""What RabbitMQ really does where Fluffle leans on it: RabbitBroker alone, on a real node."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pika
import pika.exceptions
import pytest
from brokers import SOON_S, limited, publish_version, receive, send
from federation import wait_until
from rabbitmqctl import rabbitmqctl
from relay import Relay

from fluffle.errors import ConfigError, ConnectionLost, LoginRefused, QueueFull, TopologyMissing
from fluffle.rabbit import RabbitBroker
from fluffle.rabbit.broker import INBOX_LIMIT_BYTES
from fluffle.topology import MIB, Topology
from fluffle_cli.node import BrokerNode

# Too long for a busy machine to miss; the test that waits for heartbeats has shorter ones.
HEARTBEAT_S, SHORT_HEARTBEAT_S = 20, 1
# Whatever would come without back-pressure has come by then.
A_PAUSE_S = 3.0
# What a connection that pauses still reads in that time, to keep its heartbeat. The kernel may hold far more.
GLANCES_BYTES = 16 * MIB


def connect(
    node: BrokerNode, *, through: Relay | None = None, heartbeat_s: int = HEARTBEAT_S
) -> RabbitBroker:
    url = node.amqp_url
    if through:
        url = url.replace(f":{node.amqp_port}/", f":{through.port}/")
    return RabbitBroker(url, name="facts", heartbeat_s=heartbeat_s)


@pytest.fixture
def relay(node: BrokerNode) -> Iterator[Relay]:
    with Relay(node.amqp_port) as relay:
        yield relay


@pytest.fixture
def broker(node: BrokerNode, topology: Topology) -> Iterator[RabbitBroker]:
    with connect(node) as broker:
        broker.declare(topology)
        yield broker


@contextmanager
def operator(node: BrokerNode) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """What somebody does to the queues with a client of his own."""
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        yield connection.channel()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda url: url.replace("amqp://fluffle", "amqp://somebody"), LoginRefused, "'somebody"),
        (lambda url: url.replace("@", "x@"), LoginRefused, "password"),
        (lambda url: url.replace("/%2F", "/elsewhere"), LoginRefused, "'elsewhere'"),
        (lambda _: "amqp://a:b@127.0.0.1:1/%2F", ConnectionLost, "127.0.0.1:1"),
        (lambda _: "amqp://a:b@nowhere.invalid:5672/%2F", ConnectionLost, "nowhere.invalid"),
        (lambda _: "amqp://a:b@127.0.0.1:port/%2F", ConfigError, "URL"),
    ],
    ids=["user", "password", "virtual host", "port", "host", "URL"],
)
def test_a_wrong_address_or_login_is_said_in_one_sentence(
    node: BrokerNode, change: Callable[[str], str], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        RabbitBroker(change(node.amqp_url), name="facts", heartbeat_s=HEARTBEAT_S)

    assert node.password not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_deleted_queue_wakes_its_consumer_with_an_error(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    broker.consume(topology.updates.name, prefetch=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broker.next_delivery, 10 * SOON_S)

        with operator(node) as channel:
            channel.queue_delete(topology.updates.name)

        with pytest.raises(TopologyMissing, match="deleted"):
            waiting.result(timeout=SOON_S)


def test_whoever_waits_or_calls_learns_at_once_that_the_line_is_cut(
    node: BrokerNode, broker: RabbitBroker, relay: Relay, topology: Topology
) -> None:
    waiting, reading, calling = (connect(node, through=relay) for _ in range(3))
    waiting.consume(topology.updates.name, prefetch=1)

    def read_on() -> object:
        with reading.read_stream(topology.models.name, offset="last") as reader:
            return reader.next_body(10 * SOON_S)

    def call_on() -> object:
        while True:
            calling.publish(topology.rejected_in.name, "", bytes(1000), {})

    def wait_on() -> object:
        return waiting.next_delivery(10 * SOON_S)

    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(use) for use in (wait_on, read_on, call_on)]
        wait_until(lambda: broker.state(topology.rejected.name).messages > 10, "messages on their way")
        cut_at = time.monotonic()
        relay.cut()

        for end in ends:
            with pytest.raises(ConnectionLost):
                end.result(timeout=SOON_S)
        assert time.monotonic() - cut_at < 3
    for lost in (waiting, reading, calling):
        lost.close()


@pytest.mark.usefixtures("broker")
def test_the_heartbeat_goes_on_while_the_callers_thread_computes(
    node: BrokerNode, topology: Topology
) -> None:
    with connect(node, heartbeat_s=SHORT_HEARTBEAT_S) as computing:
        computing.consume(topology.updates.name, prefetch=1)

        done_at = time.monotonic() + 4 * SHORT_HEARTBEAT_S
        while time.monotonic() < done_at:
            sum(range(10_000))  # as an epoch does, without a glance at the broker

        send(computing, topology, b"still here")
        assert receive(computing, 1)


def test_a_backlog_stays_with_the_broker_until_somebody_takes_it(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    count, size_bytes = 30, 4 * MIB
    send(broker, topology, *[bytes([number]) * size_bytes for number in range(count)])
    with connect(node) as slow:
        slow.consume(topology.updates.name, prefetch=count)

        wait_until(lambda: slow._connection.traffic_bytes > INBOX_LIMIT_BYTES, "the first messages")
        time.sleep(A_PAUSE_S)
        assert slow._connection.traffic_bytes < INBOX_LIMIT_BYTES + GLANCES_BYTES < count * size_bytes

        for number in range(count):
            [delivery] = receive(slow, 1)
            assert delivery.body == bytes([number]) * size_bytes
            slow.ack([delivery.tag])


def test_while_a_large_message_is_in_hand_the_next_one_stays_with_the_broker(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    size_bytes = INBOX_LIMIT_BYTES + MIB
    send(broker, topology, *[bytes([number]) * size_bytes for number in range(2)])
    with connect(node) as slow:
        slow.consume(topology.updates.name, prefetch=2)

        [first] = receive(slow, 1)
        time.sleep(A_PAUSE_S)
        assert slow._connection.traffic_bytes < size_bytes + GLANCES_BYTES < 2 * size_bytes

        [second] = receive(slow, 1)
        assert [first.body[:1], second.body] == [b"\0", b"\1" * size_bytes]


def test_a_reader_that_leaves_in_the_middle_of_a_burst_keeps_its_connection(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    with connect(node) as other, ThreadPoolExecutor(1) as pool:
        versions = [b"%d" % number for number in range(300)]
        burst = pool.submit(publish_version, other, topology, *versions)

        while not burst.done():
            with broker.read_stream(topology.models.name, offset="last") as reader:
                reader.next_body(0)

        burst.result()
    broker.check(topology)


def test_how_often_a_message_came_is_what_the_broker_says_and_not_its_sender(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    claims: list[object] = ["many", 9, -1, None, [1]]
    with operator(node) as channel:
        for claim in claims:
            properties = pika.BasicProperties(headers={"x-delivery-count": claim})
            channel.basic_publish(topology.updates_in.name, "", b"body", properties)
    broker.consume(topology.updates.name, prefetch=10)

    assert [delivery.redeliveries for delivery in receive(broker, 5)] == [0] * 5

    broker.close()
    with connect(node) as standby:
        standby.consume(topology.updates.name, prefetch=10)
        assert [delivery.redeliveries for delivery in receive(standby, 5)] == [1] * 5


def test_a_message_that_does_not_say_who_sent_it_has_no_verified_sender(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    broker.consume(topology.updates.name, prefetch=10)

    send(broker, topology, b"signed")
    with operator(node) as channel:
        channel.basic_publish(topology.updates_in.name, "", b"anonymous")

    assert [(each.body, each.user) for each in receive(broker, 2)] == [
        (b"signed", node.user),
        (b"anonymous", None),
    ]


def test_after_a_refused_publish_another_channel_is_used_unless_the_first_one_consumes(
    node: BrokerNode, topology: Topology
) -> None:
    """A channel that met a dead leader of a queue refuses for as long as it lives."""
    small = replace(topology, updates=limited(topology.updates, size_bytes=1000))

    def channels() -> set[str]:
        return set(rabbitmqctl(node, "list_channels", "pid").split())

    def publish_until_refused(broker: RabbitBroker) -> None:
        for _ in range(100):
            broker.publish(small.updates_in.name, "", bytes(100), {})

    with connect(node) as broker:
        broker.declare(small)
        broker.publish(small.updates_in.name, "", bytes(100), {})
        before = channels()
        with pytest.raises(QueueFull):
            publish_until_refused(broker)

        wait_until(lambda: len(channels()) == len(before), "the old channel to be closed")
        assert channels() != before

        broker.consume(small.updates.name, prefetch=1)
        before = channels()
        with pytest.raises(QueueFull):
            publish_until_refused(broker)
        assert channels() == before
        assert broker.next_delivery(SOON_S)
