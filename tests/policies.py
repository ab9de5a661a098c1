"""Policies that an operator sets on a private node with the management plugin."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import pika
from fluffle_command import ask_management
from pika.adapters.blocking_connection import BlockingChannel
from rabbitmqctl import rabbitmqctl

from fluffle_cli.node import BrokerNode

OPERATOR, USUAL = "operator-policies", "policies"


@contextmanager
def policy(
    node: BrokerNode,
    pattern: str,
    definition: Mapping[str, object],
    *,
    kind: str = USUAL,
    name: str = "a-policy",
    priority: int = 0,
    applies_to: str = "all",
) -> Iterator[None]:
    """Have a policy act on what matches its pattern, and delete it at the end."""
    path = f"{kind}/%2F/{name}"
    body = {
        "pattern": pattern,
        "definition": definition,
        "priority": priority,
        "apply-to": applies_to,
    }
    ask_management(node, "PUT", path, body)
    try:
        yield
    finally:
        ask_management(node, "DELETE", path)


ACTING = (
    "[{element(4, amqqueue:get_name(Q)), rabbit_policy:name(Q), rabbit_policy:name_op(Q)} || "
    "Q <- rabbit_amqqueue:list()]."
)


def acting(node: BrokerNode) -> dict[str, tuple[str, str]]:
    """Return by queue the names of the policy and the operator policy that act there; empty for none."""
    said = re.sub(r"\s", "", rabbitmqctl(node, "eval", ACTING))
    rows = re.findall(r'{<<"([^"]+)">>,(?:<<"([^"]+)">>|none),(?:<<"([^"]+)">>|none)}', said)
    return {name: (policy, operator_policy) for name, policy, operator_policy in rows}


@contextmanager
def a_channel(node: BrokerNode) -> Iterator[BlockingChannel]:
    """What somebody does to the queues with a client of his own; publishes are confirmed."""
    # No heartbeats: nobody answers them meanwhile, and RabbitMQ would close the connection.
    with pika.BlockingConnection(pika.URLParameters(f"{node.amqp_url}?heartbeat=0")) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def count(node: BrokerNode, queue: str) -> int | None:
    """Count the messages that wait in a queue; None when it is gone."""
    with a_channel(node) as channel, suppress(pika.exceptions.ChannelClosedByBroker):
        return int(channel.queue_declare(queue, passive=True).method.message_count)
    return None
