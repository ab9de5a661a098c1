"""`fluffle broker up|down|status`: a private RabbitMQ in a folder, for a person at a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fluffle.command_line import new_app
from fluffle_cli.node import BrokerNode, make_private_folder
from fluffle_cli.node_tls import NodeTls
from fluffle_cli.rabbitmq_server import SERVER_FOLDER_VARIABLE

DEFAULT_FOLDER = Path(".fluffle/broker")

app = new_app(
    "A RabbitMQ of your own: in one folder, on 127.0.0.1 only, beside any other RabbitMQ on this machine."
)

Folder = Annotated[
    Path,
    typer.Option(
        "--folder",
        envvar="FLUFFLE_BROKER_FOLDER",
        metavar="PATH",
        help="Where the broker keeps its data, logs and password; two folders are two brokers.",
    ),
]


@app.command(
    epilog=f"The server is that of {SERVER_FOLDER_VARIABLE} (the folder of rabbitmq-server) if set, else the"
    " installed one."
)
def up(
    folder: Folder = DEFAULT_FOLDER,
    management: Annotated[
        bool, typer.Option(help="With RabbitMQ's UI; without it the broker starts a little faster.")
    ] = True,
    tls: Annotated[
        bool, typer.Option("--tls", help="Speak TLS, with certificates that are made in the folder.")
    ] = False,
) -> None:
    """Start the broker in the background, wait until it serves (about 7 s), and say how to reach it.

    What a stopped broker has left in the folder is there again: queues, messages, user and password.
    A broker that runs already is left as it is.
    """
    node = _node(folder)
    if node is not None and node.is_running:
        typer.echo(f"RabbitMQ runs already in {folder} (process {node.pid}).")
    else:
        certificates = _certificates_in(folder) if tls else None
        with Console(stderr=True).status("starting RabbitMQ"):
            node = BrokerNode.start(folder, management=management, tls=certificates)
        typer.echo(f"RabbitMQ runs in {folder} (process {node.pid}).")
    option = "" if folder == DEFAULT_FOLDER else f" --folder {quote(str(folder))}"
    if node.management_url is not None:
        typer.echo(f"  its UI     {node.management_url}   user {node.user}   password {node.password}")
    typer.echo(f"  for parts  export FLUFFLE_BROKER_URL={node.amqp_url}")
    if node.authority is not None:
        typer.echo(f"             export FLUFFLE_BROKER_CA_FILE={quote(str(node.authority))}")
    if node.management_url is not None:
        typer.echo(f"  for users  export FLUFFLE_MANAGEMENT_URL={node.management_url}")
    typer.echo(f"  to stop    fluffle broker down{option}")


@app.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the broker in good order; its folder stays, and `up` goes on with what is in it."""
    node = _node(folder)
    if node is None or not node.is_running:
        typer.echo(f"No RabbitMQ runs in {folder}.")
    if node is None:
        return
    was_running = node.is_running
    with Console(stderr=True).status("stopping RabbitMQ"):
        node.stop()
    if was_running:
        typer.echo(f"RabbitMQ in {folder} has stopped; its data are still there.")


@app.command()
def status(
    folder: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say whether the broker runs, and how to reach it; the exit code is 1 when it does not."""
    node = _node(folder)
    running = node is not None and node.is_running
    facts: dict[str, str | int | None] = {"folder": str(folder)}
    if node is not None:
        facts |= {
            "pid": node.pid if running else None,
            "amqp_url": node.amqp_url,
            "management_url": node.management_url,
            "user": node.user,
            "password": node.password,
            "broker_ca_file": None if node.authority is None else str(node.authority),
        }
    if as_json:
        typer.echo(json.dumps({"running": running} | facts))
    else:
        table = Table("RabbitMQ", "running" if running else "not running", show_edge=False)
        for name, fact in facts.items():
            if fact is not None:
                table.add_row(name.replace("_", " "), str(fact))
        # Wide enough that a URL is never broken: it is there to be copied.
        Console(width=max(Console().width, 140), highlight=False, markup=False).print(table)
    if not running:
        raise typer.Exit(1)


def _certificates_in(folder: Path) -> NodeTls:
    """Make what is missing of a folder's certificates; they are kept for the next time."""
    # Here, so that --help is quick.
    from fluffle_cli.certificates import make_certificates

    certificates = folder / "certificates"
    make_private_folder(folder)
    make_certificates(certificates, now=datetime.now(UTC))
    return NodeTls(certificates)


def _node(folder: Path) -> BrokerNode | None:
    """Find the node of this folder, running or not; None when none was ever started there."""
    return BrokerNode.load(folder) if (folder / "node.json").exists() else None
