"""A federation as RabbitMQ's definitions have it: its exchanges, queues and bindings, and users. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fluffle.rights import Rights, permission_definition, user_definition
from fluffle.topology import Topology

Definitions = dict[str, list[dict[str, object]]]


def topology_definitions(topology: Topology, vhost: str) -> Definitions:
    """Return a federation's exchanges, queues and bindings, in an order in which they can be made."""
    return {
        "exchanges": [
            {
                "name": each.name,
                "vhost": vhost,
                "type": each.kind,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": dict(each.arguments),
            }
            for each in topology.exchanges
        ],
        "queues": [
            {
                "name": each.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(each.arguments),
            }
            for each in topology.queues
        ],
        "bindings": [
            _binding(exchange.name, vhost, queue.name, "queue", "")
            for queue in topology.queues
            for exchange in queue.exchanges
        ]
        + [
            _binding(source.name, vhost, exchange.name, "exchange", "#")
            for exchange in topology.exchanges
            for source in exchange.sources
        ],
    }


def user_definitions(users: Mapping[str, tuple[Rights, str]], vhost: str) -> Definitions:
    """Return users, given with their rights and password hashes by name, and what they may do."""
    return {
        "users": [user_definition(name, rights, hashed) for name, (rights, hashed) in users.items()],
        "permissions": [permission_definition(name, rights, vhost) for name, (rights, _) in users.items()],
    }


def _binding(source: str, vhost: str, target: str, kind: str, routing_key: str) -> dict[str, object]:
    return {
        "source": source,
        "vhost": vhost,
        "destination": target,
        "destination_type": kind,
        "routing_key": routing_key,
        "arguments": {},
    }
