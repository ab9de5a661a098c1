"""The two kinds of Broker, for one suite."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from brokers import Connect
from fake_broker import FakeBroker, FakeServer

from fluffle.broker import Broker
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode


@pytest.fixture(params=["fake", "rabbitmq"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """A function that makes one more connection to one server."""
    with ExitStack() as stack:
        if request.param == "fake":
            server = FakeServer()
            yield lambda: stack.enter_context(FakeBroker(server))
        else:
            node: BrokerNode = request.getfixturevalue("node")
            yield lambda: stack.enter_context(RabbitBroker(node.amqp_url, name="contract", heartbeat_s=10))


@pytest.fixture
def broker(connect: Connect, topology: Topology) -> Broker:
    """A connection to a server where the federation's queues are."""
    broker = connect()
    broker.declare(topology)
    return broker
