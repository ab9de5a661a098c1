"""What tests say to the command line, and to RabbitMQ's management interface past it."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from typer.testing import Result

from fluffle_cli.node import BrokerNode

Fluffle = Callable[..., Result]


def ask_management(node: BrokerNode, method: str, path: str, body: object = None) -> None:
    """Do what another administrator's program might do meanwhile."""
    with httpx.Client(auth=(node.user, node.password), trust_env=False) as client:
        client.request(method, f"{node.management_url}api/{path}", json=body).raise_for_status()
