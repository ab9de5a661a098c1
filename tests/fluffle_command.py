"""What tests say to the command line, and to RabbitMQ's management interface past it."""

import re
from collections.abc import Callable

import httpx
import pika
import pika.exceptions
from typer.testing import Result

from fluffle_cli.node import BrokerNode

Fluffle = Callable[..., Result]


def ask_management(node: BrokerNode, method: str, path: str, body: object = None) -> None:
    """Do what another administrator's program might do meanwhile."""
    with httpx.Client(auth=(node.user, node.password), trust_env=False) as client:
        client.request(method, f"{node.management_url}api/{path}", json=body).raise_for_status()


def url_of(node: BrokerNode, user: str, password: str) -> str:
    """Where a user connects to a node."""
    return f"amqp://{user}:{password}@127.0.0.1:{node.amqp_port}/%2F"


def gets_in(node: BrokerNode, user: str, password: str) -> bool:
    """Tell whether a node lets a user in by this password."""
    try:
        pika.BlockingConnection(pika.URLParameters(url_of(node, user, password))).close()
    except pika.exceptions.ProbableAuthenticationError:
        return False
    return True


def listed(fluffle: Fluffle, federation: str) -> dict[str, list[str]]:
    """Return what `user list` says of each user."""
    lines = fluffle("user", "list", "--federation", federation).output.splitlines()[2:]
    rows = [[cell.strip() for cell in re.split(r"[│|]", line)] for line in lines]
    return {row[0]: row[1:] for row in rows if len(row) == 4}
