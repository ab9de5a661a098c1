"""RabbitMQ vouches for who sent a message, and through which exchange; nothing else is believed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import SOON_S
from federation import Federation, assert_refused
from rabbitmqctl import add_user

from fluffle.connection import say_hello
from fluffle.errors import AccessRefused
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode


def connect(url: str, *, speaks_for: str | None = None) -> RabbitBroker:
    return RabbitBroker(url, name="identity", heartbeat_s=10, speaks_for=speaks_for)


@pytest.fixture
def aggregator(node: BrokerNode, topology: Topology) -> Iterator[RabbitBroker]:
    """A connection of a user who may speak for anybody, which consumes the updates."""
    with connect(node.amqp_url) as broker:
        broker.declare(topology)
        broker.consume(topology.updates.name, prefetch=10)
        yield broker


@pytest.fixture(scope="module")
def site_a(node: BrokerNode) -> str:
    """The URL of a user with the name of a worker, who may publish."""
    return add_user(node, "site-a", write=r"^federation-\d+\.updates$")


def test_a_user_speaks_for_itself_and_the_exchange_that_it_used_is_known(
    aggregator: RabbitBroker, topology: Topology, site_a: str
) -> None:
    with connect(site_a, speaks_for="site-a") as worker:
        say_hello(worker, topology.updates_in, federation=topology.federation, name="site-a")

    delivery = aggregator.next_delivery(SOON_S)
    assert delivery is not None
    assert (delivery.user, delivery.exchange) == ("site-a", topology.updates_in.name)


def test_nobody_speaks_for_another(aggregator: RabbitBroker, topology: Topology, site_a: str) -> None:
    with (
        connect(site_a, speaks_for="site-b") as impostor,
        pytest.raises(AccessRefused, match="'site-a' may not speak for another: call this part 'site-a'"),
    ):
        say_hello(impostor, topology.updates_in, federation=topology.federation, name="site-b")

    assert aggregator.next_delivery(0.2) is None


def test_whoever_has_the_tag_impersonator_speaks_for_anybody(
    node: BrokerNode, aggregator: RabbitBroker, topology: Topology
) -> None:
    with connect(node.amqp_url, speaks_for="site-c") as worker:
        say_hello(worker, topology.updates_in, federation=topology.federation, name="site-c")

    delivery = aggregator.next_delivery(SOON_S)
    assert delivery is not None
    assert delivery.user == "site-c"


def test_a_worker_with_another_name_than_its_user_learns_it_before_it_trains(
    node: BrokerNode, tmp_path: Path, federation: str, aggregator: RabbitBroker, site_a: str
) -> None:

    with Federation(federation, site_a, tmp_path, task="numpy_task:task") as running:
        worker = running.worker(0)

        assert_refused(worker, "the user 'site-a' may not speak for another", "--name")
