"""What is shown while a large message is on its way to or from a real broker."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from brokers import SOON_S, receive
from federation import wait_until
from relay import Relay

from fluffle import transfers
from fluffle.rabbit import RabbitBroker
from fluffle.topology import MIB, Topology
from fluffle_cli.node import BrokerNode

LARGE = bytes(20 * MIB)
PART_BYTES = 5 * MIB


@pytest.fixture
def relay(node: BrokerNode) -> Iterator[Relay]:
    with Relay(node.amqp_port) as relay:
        yield relay


@pytest.fixture
def broker(
    node: BrokerNode, relay: Relay, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RabbitBroker]:
    """A connection over a line that can be held up, and which says at each look how far it is."""
    monkeypatch.setattr(transfers, "SAY_EVERY_S", 0.0)
    url = node.amqp_url.replace(f":{node.amqp_port}/", f":{relay.port}/")
    with RabbitBroker(url, name="transfers", heartbeat_s=60) as broker:
        broker.declare(topology)
        yield broker


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[float]]:
    """Return how many MiB of a message of 20 were said to be there, each time."""
    caplog.set_level("INFO")

    def said(event: str) -> list[float]:
        found = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
        ours = [line for line in found if line["event"] == event]
        assert all(line["size_mib"] == 20.0 for line in ours)
        return [line["done_mib"] for line in ours]

    return said


def test_a_message_that_waits_for_its_confirm_is_said_to_be_sent(
    broker: RabbitBroker, relay: Relay, topology: Topology, said: Callable[[str], list[float]]
) -> None:
    relay.hold_answers()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(broker.publish, topology.updates_in.name, "", LARGE, {"kind": "update"})
        wait_until(lambda: 20.0 in said("sending a large message"), "the whole message to be sent")
        relay.let_go()
        sending.result(6 * SOON_S)

    assert all(one <= other for one, other in pairwise(said("sending a large message")))


def test_a_model_on_a_slow_line_is_said_to_be_on_its_way(
    broker: RabbitBroker, relay: Relay, topology: Topology, said: Callable[[str], list[float]]
) -> None:
    broker.publish(topology.models_in.name, "", LARGE, {})
    relay.hold_answers_after(relay.to_client_bytes + PART_BYTES)
    with ThreadPoolExecutor(1) as pool, broker.read_stream(topology.models.name, offset="last") as reader:
        reading = pool.submit(reader.next_body, 6 * SOON_S)
        wait_until(lambda: bool(said("receiving a large message")), "a word of the model")
        relay.let_go()
        assert reading.result(6 * SOON_S) == LARGE

    assert 0 < said("receiving a large message")[0] <= 6


def test_an_update_on_a_slow_line_is_said_to_be_on_its_way(
    node: BrokerNode,
    broker: RabbitBroker,
    relay: Relay,
    topology: Topology,
    said: Callable[[str], list[float]],
) -> None:
    broker.consume(topology.updates.name, prefetch=1)
    relay.hold_answers_after(relay.to_client_bytes + PART_BYTES)
    with RabbitBroker(node.amqp_url, name="sender", heartbeat_s=60) as sender:
        sender.publish(topology.updates_in.name, "", LARGE, {})

    def something_is_said() -> bool:
        assert broker.next_delivery(0.1) is None
        return bool(said("receiving a large message"))

    wait_until(something_is_said, "a word of the update")
    relay.let_go()

    assert [delivery.body for delivery in receive(broker, 1)] == [LARGE]
