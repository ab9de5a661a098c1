"""What RabbitMQ's policies do to a federation's queues; docs/reference/policies.md has the table.

Each is tried on a real node, and holds on 3.10 and on 4.0. A policy's pattern names the test's own
federation, and is deleted at the end.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pika.exceptions
import pytest
from brokers import look_into, publish_version, read, send
from federation import wait_until
from policies import OPERATOR, USUAL, a_channel, count, policy
from rabbitmqctl import rabbitmqctl

from fluffle.broker import Delivery
from fluffle.errors import QueueFull, Unroutable
from fluffle.rabbit import RabbitBroker
from fluffle.topology import HEAD_LENGTH, MIB, STREAM_SEGMENT_BYTES, Topology
from fluffle_cli.node import BrokerNode

TTL_MS = 500
SOON_S = 20.0
KINDS = pytest.mark.parametrize("kind", [USUAL, OPERATOR])


@pytest.fixture(scope="module")
def node() -> Iterator[BrokerNode]:
    """A node with the management interface, which is how an operator sets policies."""
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-tests-") as folder,
        BrokerNode.start(Path(folder)) as started,
    ):
        # Else a channel looks once a minute for what is held too long.
        rabbitmqctl(started, "eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        yield started


@pytest.fixture
def broker(node: BrokerNode, topology: Topology) -> Iterator[RabbitBroker]:
    with RabbitBroker(node.amqp_url, name="policies", heartbeat_s=20) as broker:
        broker.declare(topology)
        yield broker


def is_3(broker: RabbitBroker) -> bool:
    return broker.server.startswith("RabbitMQ 3.")


def everything_of(topology: Topology) -> str:
    return rf"^{topology.federation}\."


def publish_everywhere(broker: RabbitBroker, topology: Topology, messages: int = 3) -> None:
    for number in range(messages):
        body = b"%d" % number
        send(broker, topology, body)
        broker.publish(topology.rejected_in.name, "", body, {})
        publish_version(broker, topology, body)


def becomes(node: BrokerNode, queue: str, messages: int | None) -> None:
    wait_until(lambda: count(node, queue) == messages, f"{messages} messages in {queue}", deadline_s=SOON_S)


def rejected(broker: RabbitBroker, topology: Topology, messages: int) -> list[Delivery]:
    broker.consume(topology.rejected.name, prefetch=messages)
    found = [broker.next_delivery(SOON_S) for _ in range(messages)]
    return [delivery for delivery in found if delivery is not None]


@KINDS
def test_a_message_ttl_acts_on_each_quorum_queue_and_not_on_the_stream(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, kind: str
) -> None:
    with policy(node, everything_of(topology), {"message-ttl": TTL_MS}, kind=kind):
        publish_everywhere(broker, topology)

        for queue in (topology.updates, topology.rejected, topology.head):
            becomes(node, queue.name, 0)
        assert read(broker, topology, 3, offset="first") == [b"0", b"1", b"2"]


def test_updates_that_expire_are_moved_to_the_refused_with_sender_and_reason(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    with policy(node, rf"^{topology.updates.name}$", {"message-ttl": TTL_MS}):
        send(broker, topology, b"a", b"b")

        becomes(node, topology.rejected.name, 2)

    found = rejected(broker, topology, 2)
    assert [(each.body, each.user) for each in found] == [(b"a", node.user), (b"b", node.user)]
    assert {str(each.headers["x-first-death-reason"]) for each in found} == {"expired"}
    assert {str(each.headers["x-first-death-exchange"]) for each in found} == {topology.updates_in.name}


def test_messages_older_than_a_message_ttl_stay_and_those_behind_them_expire_at_the_next_read(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    publish_version(broker, topology, b"before")
    with policy(node, everything_of(topology), {"message-ttl": TTL_MS}):
        publish_version(broker, topology, b"after")
        send(broker, topology, b"to see that time has passed")
        becomes(node, topology.updates.name, 0)
        assert broker.state(topology.head.name).messages == 2

        # A message expires when it is the first of its queue, as soon as a look has taken those before it.
        assert look_into(broker, topology.head.name) == [b"before"]
        assert read(broker, topology, 2, offset="first") == [b"before", b"after"]


@KINDS
def test_expires_deletes_the_queues_that_nobody_consumes_with_all_that_is_in_them(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, kind: str
) -> None:
    publish_everywhere(broker, topology)
    broker.consume(topology.updates.name, prefetch=1)
    with policy(node, everything_of(topology), {"expires": TTL_MS}, kind=kind):
        # To look whether they are there counts for nothing.
        for queue in (topology.rejected, topology.head):
            becomes(node, queue.name, None)
        assert count(node, topology.updates.name) is not None
        assert read(broker, topology, 3, offset="first") == [b"0", b"1", b"2"]

        broker.close()
        becomes(node, topology.updates.name, None)


@KINDS
def test_the_lower_of_two_max_lengths_counts_and_streams_ignore_it(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, kind: str
) -> None:
    with policy(node, everything_of(topology), {"max-length": 1}, kind=kind):
        with pytest.raises(QueueFull):
            send(broker, topology, *[b"update"] * 5)
        publish_version(broker, topology, b"0", b"1", b"2")

        assert look_into(broker, topology.head.name) == [b"2"]
        assert read(broker, topology, 3, offset="first") == [b"0", b"1", b"2"]
    with policy(node, everything_of(topology), {"max-length": 100}, kind=kind):
        publish_version(broker, topology, *[b"version"] * 10)

        assert broker.state(topology.head.name).messages == HEAD_LENGTH


@KINDS
def test_a_limit_in_bytes_that_is_below_one_version_leaves_the_head_empty(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, kind: str
) -> None:
    with policy(node, everything_of(topology), {"max-length-bytes": 10}, kind=kind):
        publish_version(broker, topology, bytes(11))

        becomes(node, topology.head.name, 0)


def test_overflow_by_policy_beats_the_queues_own_argument(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    keys = {"overflow": "drop-head", "max-length": 2}
    with policy(node, rf"^{topology.updates.name}$", keys):
        send(broker, topology, *[b"%d" % number for number in range(5)])

        becomes(node, topology.rejected.name, 3)
        assert broker.state(topology.updates.name).messages == 2
    with policy(node, rf"^{topology.head.name}$", {"overflow": "reject-publish"}), pytest.raises(QueueFull):
        publish_version(broker, topology, *[b"version"] * (HEAD_LENGTH + 2))

    found = rejected(broker, topology, 3)
    assert {str(each.headers["x-first-death-reason"]) for each in found} == {"maxlen"}


def test_an_operator_policy_knows_overflow_from_4_on(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    keys = {"overflow": "reject-publish"}
    pattern = rf"^{topology.head.name}$"
    if is_3(broker):
        with pytest.raises(httpx.HTTPStatusError), policy(node, pattern, keys, kind=OPERATOR):
            pass
        return
    with policy(node, pattern, keys, kind=OPERATOR), pytest.raises(QueueFull):
        publish_version(broker, topology, *[b"version"] * (HEAD_LENGTH + 2))


@KINDS
def test_the_lower_of_two_delivery_limits_counts_and_each_read_is_a_delivery(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, kind: str
) -> None:
    publish_version(broker, topology, b"newest")
    send(broker, topology, b"update")
    with policy(node, everything_of(topology), {"delivery-limit": 1}, kind=kind):

        def look() -> bool:
            look_into(broker, topology.head.name)
            return count(node, topology.head.name) == 0

        wait_until(look, "the head to be empty", deadline_s=SOON_S)

        def let_go() -> bool:
            with RabbitBroker(node.amqp_url, name="policies", heartbeat_s=20) as consumer:
                consumer.consume(topology.updates.name, prefetch=1)
                consumer.next_delivery(1.0)
            return count(node, topology.rejected.name) == 1

        wait_until(let_go, "the update among the refused", deadline_s=SOON_S)


def test_a_dead_letter_exchange_of_the_queues_own_beats_a_policy(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    trash = f"trash-{topology.federation}"
    with a_channel(node) as channel:
        channel.exchange_declare(trash, "fanout")
        channel.queue_declare(trash)
        channel.queue_bind(trash, trash)
    keys = {"dead-letter-exchange": trash, "dead-letter-strategy": "at-most-once"}
    with policy(node, everything_of(topology), {**keys, "dead-letter-routing-key": trash}):
        publish_version(broker, topology, *[b"version"] * (HEAD_LENGTH + 3))
        # An expression for one queue would be another policy, and only one acts.
        with a_channel(node) as channel:
            channel.basic_publish(topology.updates_in.name, "", b"x", pika.BasicProperties(expiration="1"))
        becomes(node, topology.rejected.name, 1)

    assert count(node, trash) == 0


def test_an_alternate_exchange_of_the_exchanges_own_beats_a_policy(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    trash = f"trash-{topology.federation}"
    with a_channel(node) as channel:
        channel.exchange_declare(trash, "fanout")
        channel.queue_declare(trash)
        channel.queue_bind(trash, trash)
        channel.queue_unbind(topology.updates.name, topology.updates_in.name)
    with policy(node, everything_of(topology), {"alternate-exchange": trash}):
        with pytest.raises(Unroutable):
            send(broker, topology, b"nobody takes this")
        broker.publish_unconfirmed(topology.events.name, "key", b"nobody listens")
        broker.publish(topology.rejected_in.name, "", b"all before has been dealt with", {})

    assert count(node, trash) == 0


def test_max_age_by_policy_deletes_segments_of_the_stream(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    larger_than_a_segment = bytes(STREAM_SEGMENT_BYTES + MIB)
    with policy(node, everything_of(topology), {"max-age": "1s"}):
        broker.publish(topology.models_in.name, "", b"old" + larger_than_a_segment, {})
        old_at = time.monotonic()
        wait_until(lambda: time.monotonic() > old_at + 2, "the version to be old")
        broker.publish(topology.models_in.name, "", b"new" + larger_than_a_segment, {})

        def is_gone() -> bool:
            [body] = read(broker, topology, 1, offset="first")
            return body is None or not body.startswith(b"old")

        wait_until(is_gone, "the older version to be gone", deadline_s=2 * SOON_S)


def test_a_limit_in_bytes_by_policy_hides_the_newest_version_of_the_stream_when_a_segment_is_full(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    assert int(topology.models.arguments["x-max-length-bytes"]) > 2 * STREAM_SEGMENT_BYTES
    with policy(node, everything_of(topology), {"max-length-bytes": 1000}):
        broker.publish(topology.models_in.name, "", bytes(STREAM_SEGMENT_BYTES + MIB), {})

        def finds_nothing() -> bool:
            with broker.read_stream(topology.models.name, offset="last") as reader:
                return reader.next_body(1.0) is None

        wait_until(finds_nothing, "a late joiner to find nothing", deadline_s=2 * SOON_S)


def test_a_consumer_timeout_by_policy_closes_the_channel_of_who_holds_a_message_from_4_on(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    keys = {"consumer-timeout": 1000}
    if is_3(broker):
        with pytest.raises(httpx.HTTPStatusError), policy(node, everything_of(topology), keys):
            pass
        return
    send(broker, topology, b"held")
    with policy(node, everything_of(topology), keys), a_channel(node) as channel:
        channel.basic_consume(topology.updates.name, lambda *_: None)

        def is_closed() -> bool:
            channel.connection.process_data_events(0.1)
            return not channel.is_open

        wait_until(is_closed, "the channel to be closed", deadline_s=SOON_S)


@pytest.mark.parametrize(
    "definition",
    [
        {"queue-leader-locator": "balanced"},
        {"queue-version": 2},
        {"max-in-memory-length": 0},
        {"queue-mode": "lazy"},
        {"queue-mode": "lazy", "message-ttl": TTL_MS},
        {"max-age": "1s", "message-ttl": TTL_MS},
        {"stream-max-segment-size-bytes": 1_000_000},
    ],
    ids=", ".join,
)
def test_other_keys_lose_nothing_and_a_key_for_other_queue_types_disables_the_whole_policy(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, definition: dict[str, object]
) -> None:
    with policy(node, everything_of(topology), definition):
        publish_everywhere(broker, topology)
        passed_at = time.monotonic() + 3 * TTL_MS / 1000
        wait_until(lambda: time.monotonic() > passed_at, "what would expire to expire")

        for queue in (topology.updates, topology.rejected, topology.head):
            assert broker.state(queue.name).messages == 3
        assert read(broker, topology, 3, offset="first") == [b"0", b"1", b"2"]
