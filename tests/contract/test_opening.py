"""Opening a connection when the URL names several nodes of a cluster."""

import pytest
from relay import Relay

from fluffle.errors import ConnectionLost, LoginRefused
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode

NOBODY, NOBODY_EITHER = "127.0.0.1:1", "127.0.0.1:2"


def connect(url: str) -> RabbitBroker:
    return RabbitBroker(url, name="opening", heartbeat_s=10)


def url_of(node: BrokerNode, *places: str) -> str:
    """The node's URL with other hosts and ports instead of its own."""
    return node.amqp_url.replace(f"127.0.0.1:{node.amqp_port}", ",".join(places))


def test_the_one_node_that_answers_is_found_among_those_that_do_not(
    node: BrokerNode, topology: Topology
) -> None:
    url = url_of(node, NOBODY, f"localhost:{node.amqp_port}", NOBODY_EITHER)

    for _ in range(3):
        with connect(url) as broker:
            broker.declare(topology)


def test_connections_spread_over_all_nodes(node: BrokerNode) -> None:
    with Relay(node.amqp_port) as one, Relay(node.amqp_port) as other:
        url = url_of(node, f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}")
        # All on one side would happen once in 2**63 times.
        for _ in range(64):
            connect(url).close()
            if one.to_client_bytes and other.to_client_bytes:
                break

    assert one.to_client_bytes
    assert other.to_client_bytes


def test_when_no_node_answers_the_error_says_of_each_why(node: BrokerNode) -> None:
    with pytest.raises(ConnectionLost) as raised:
        connect(url_of(node, NOBODY, NOBODY_EITHER))

    assert "none of 2 brokers" in str(raised.value)
    assert NOBODY in str(raised.value)
    assert NOBODY_EITHER in str(raised.value)
    assert str(raised.value).count("Connection refused") == 2
    assert node.password not in str(raised.value)


def test_a_refused_login_is_final_when_all_nodes_refuse_it_and_not_while_one_may_come_back(
    node: BrokerNode,
) -> None:
    here = f"127.0.0.1:{node.amqp_port}"
    wrong = node.amqp_url.replace("@", "-wrong@")

    with pytest.raises(LoginRefused, match="none of 2 brokers"):
        connect(wrong.replace(here, f"{here},{here}"))
    with pytest.raises(ConnectionLost, match="or its password"):
        connect(wrong.replace(here, f"{here},{NOBODY}"))
