"""What an operator does to a private node with `rabbitmqctl`."""

import os
import subprocess

from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import find_server, server_environment


def rabbitmqctl(node: BrokerNode, *arguments: str) -> str:
    """Run one command against a running node, and return what it prints."""
    result = subprocess.run(
        [find_server(os.environ).with_name("rabbitmqctl"), "--quiet", *arguments],
        env=server_environment(node),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def add_user(
    node: BrokerNode, name: str, *, configure: str = "^$", write: str = "^$", read: str = "^$"
) -> str:
    """Make a user with these rights, and return the URL that it connects with."""
    rabbitmqctl(node, "add_user", name, "secret")
    rabbitmqctl(node, "set_permissions", name, configure, write, read)
    return f"amqp://{name}:secret@127.0.0.1:{node.amqp_port}/%2F"
