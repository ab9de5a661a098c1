"""A broker that takes smaller messages than Fluffle's own limit, on a node of its own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders import a_layout
from fake_broker import FakeBroker, FakeServer
from federation import Federation, assert_refused
from rabbitmqctl import rabbitmqctl

from fluffle.errors import MessageTooLarge
from fluffle.rabbit import RabbitBroker
from fluffle.safetensors_file import write_model
from fluffle.topology import MIB, Topology, topology_of
from fluffle_cli.node import BrokerNode

# RabbitMQ reads rabbitmq.conf into these when it starts: 3.10 into the first, 4.0 into the second.
SMALLER_LIMIT = (
    f"application:set_env(rabbit, max_message_size, {MIB}), persistent_term:put(max_message_size, {MIB})."
)


@pytest.fixture(scope="module")
def small_node() -> Iterator[BrokerNode]:
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-tests-") as folder,
        BrokerNode.start(Path(folder), management=False) as started,
    ):
        rabbitmqctl(started, "eval", SMALLER_LIMIT)
        yield started


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    """A file with a model of 2 MiB."""
    layout = a_layout(MIB // 2)
    path = tmp_path / "large.safetensors"
    write_model(path, {"kernel": np.ones(layout.size, np.float32)})
    return path


def test_what_the_broker_does_not_take_says_its_limit_and_what_to_set(
    small_node: BrokerNode, topology: Topology
) -> None:
    with RabbitBroker(small_node.amqp_url, name="limit", heartbeat_s=10) as broker:
        broker.declare(topology)
        broker.publish(topology.updates_in.name, "", bytes(MIB), {"kind": "update"})

        with pytest.raises(MessageTooLarge, match="max_message_size = 536870912") as raised:
            broker.publish(topology.updates_in.name, "", bytes(MIB + 1), {"kind": "update"})

    assert raised.value.limit_bytes == MIB
    assert f"message size {MIB + 1}" in str(raised.value)


@pytest.mark.parametrize("kind", ["fake", "rabbitmq"])
def test_what_is_above_the_limit_that_is_set_is_not_sent_and_the_connection_goes_on(
    small_node: BrokerNode, topology: Topology, kind: str
) -> None:
    with (
        FakeBroker(FakeServer(max_message_bytes=1000))
        if kind == "fake"
        else RabbitBroker(small_node.amqp_url, name="limit", heartbeat_s=10, max_message_bytes=1000)
    ) as broker:
        broker.declare(topology)

        with pytest.raises(MessageTooLarge, match="this update takes"):
            broker.publish(topology.updates_in.name, "", bytes(1001), {"kind": "update"})

        broker.publish(topology.updates_in.name, "", bytes(1000), {"kind": "update"})
        assert broker.state(topology.updates.name).messages == 1


def test_the_private_broker_takes_the_largest_message_that_fluffle_sends(node: BrokerNode) -> None:
    said = rabbitmqctl(node, "eval", "rabbit_misc:get_env(rabbit, max_message_size, none).")

    assert said.strip() == str(512 * MIB)


def test_an_aggregator_whose_model_the_broker_does_not_take_says_so_at_once(
    small_node: BrokerNode, federation: str, tmp_path: Path, large_model: Path
) -> None:
    model = ("--initial-model", str(large_model))
    with Federation(federation, small_node.amqp_url, tmp_path) as running:
        unaware = running.aggregator("unaware", *model)

        assert_refused(unaware, "takes no message as large as this", "max_message_size = 536870912")

        told = running.aggregator("told", *model, "--max-message-mib", "1")
        assert_refused(told, "524,288 parameters", "2 MiB", "at most 1 MiB", "FLUFFLE_MAX_MESSAGE_MIB")


def test_an_aggregator_refuses_a_server_optimizer_whose_moments_will_not_fit_before_anybody_trains(
    small_node: BrokerNode, federation: str, tmp_path: Path, large_model: Path
) -> None:
    flags = (
        "--strategy",
        "fedbuff",
        "--initial-model",
        str(large_model),
        "--server-optimizer",
        "adam",
        "--max-message-mib",
        "3",
    )
    with Federation(federation, small_node.amqp_url, tmp_path) as running:
        assert_refused(running.aggregator("leader", *flags), "the moments of adam", "4 MiB", "at most 3 MiB")

    with RabbitBroker(small_node.amqp_url, name="limit", heartbeat_s=10) as broker:
        assert broker.state(topology_of(federation).head.name).messages == 0
