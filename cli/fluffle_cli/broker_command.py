"""`fluffle broker up|down|status`: a private RabbitMQ in a folder, for a person at a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.table import Table

from fluffle import logs
from fluffle.command_line import clean_exit, new_app, warn_of_unknown_variables
from fluffle.consoles import PlainConsole
from fluffle_cli.cluster import BrokerCluster
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
@clean_exit()
def up(
    folder: Folder = DEFAULT_FOLDER,
    management: Annotated[
        bool, typer.Option(help="With RabbitMQ's UI; without it the broker starts a little faster.")
    ] = True,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Speak TLS, with certificates for development, made in the folder."),
    ] = False,
    nodes: Annotated[
        int, typer.Option(min=1, help="3 for a cluster, of which one node at a time may die unnoticed.")
    ] = 1,
) -> None:
    """Start the broker in the background, wait until it serves (about 7 s), and say how to reach it.

    What a stopped broker has left in the folder is there again: queues, messages, user and password, and its
    nodes if it is a cluster. A broker that runs already is left as it is.
    """
    _begin()
    broker = _broker(folder)
    if broker is not None and all(node.is_running for node in _nodes(broker)):
        how = "runs already"
    else:
        certificates = _certificates_in(folder) if tls else None
        with PlainConsole(stderr=True).status("starting RabbitMQ"):
            if nodes > 1 or isinstance(broker, BrokerCluster):
                size = nodes if nodes > 1 or broker is None else len(_nodes(broker))
                broker = BrokerCluster.start(folder, size=size, management=management, tls=certificates)
            else:
                broker = BrokerNode.start(folder, management=management, tls=certificates)
        broker.outlive()
        how = "runs"
    processes = ", ".join(str(node.pid) for node in _nodes(broker))
    typer.echo(f"RabbitMQ {how} in {folder} (process {processes}).")
    option = "" if folder == DEFAULT_FOLDER else f" --folder {quote(str(folder))}"
    if broker.management_url is not None:
        typer.echo(f"  its UI     {broker.management_url}   user {broker.user}   password {broker.password}")
    typer.echo(f"  for parts  export FLUFFLE_BROKER_URL={broker.amqp_url}")
    if broker.authority is not None:
        typer.echo(f"             export FLUFFLE_BROKER_CA_FILE={quote(str(broker.authority))}")
    if broker.management_url is not None:
        typer.echo(f"  for users  export FLUFFLE_MANAGEMENT_URL={broker.management_url}")
    typer.echo(f"  to stop    fluffle broker down{option}")


@app.command()
@clean_exit()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the broker in good order; its folder stays, and `up` goes on with what is in it."""
    _begin()
    broker = _broker(folder)
    was_running = broker is not None and any(node.is_running for node in _nodes(broker))
    if not was_running:
        typer.echo(f"No RabbitMQ runs in {folder}.")
    if broker is None:
        return
    with PlainConsole(stderr=True).status("stopping RabbitMQ"):
        broker.stop()
    if was_running:
        typer.echo(f"RabbitMQ in {folder} has stopped; its data are still there.")


@app.command()
@clean_exit()
def status(
    folder: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say whether the broker runs, and how to reach it; the exit code is 1 when it does not.

    A cluster runs when more than half of its nodes do.
    """
    _begin()
    broker = _broker(folder)
    running = broker is not None and broker.is_running
    facts: dict[str, str | int | None] = {"folder": str(folder)}
    if isinstance(broker, BrokerNode):
        facts["pid"] = broker.pid if running else None
    elif broker is not None:
        facts |= {node.folder.name: _state(node) for node in broker.nodes}
    if broker is not None:
        facts |= {
            "amqp_url": broker.amqp_url,
            "management_url": broker.management_url,
            "user": broker.user,
            "password": broker.password,
            "broker_ca_file": None if broker.authority is None else str(broker.authority),
        }
    if as_json:
        typer.echo(json.dumps({"running": running} | facts))
    else:
        table = Table("RabbitMQ", "running" if running else "not running", show_edge=False)
        for name, fact in facts.items():
            if fact is not None:
                table.add_row(name.replace("_", " "), str(fact))
        # Wide enough that a URL is never broken: it is there to be copied.
        PlainConsole(width=max(PlainConsole().width, 140), highlight=False, markup=False).print(table)
    if not running:
        raise typer.Exit(1)


def _begin() -> None:
    logs.configure("pretty", verbose=False, part="broker")
    warn_of_unknown_variables()


def _certificates_in(folder: Path) -> NodeTls:
    """Make the certificates that a folder lacks; they are kept for the next time."""
    # Here, so that --help is quick.
    from fluffle_cli.certificates import make_certificates

    certificates = folder / "certificates"
    make_private_folder(folder)
    make_certificates(certificates)
    return NodeTls(certificates)


def _state(node: BrokerNode) -> str:
    port = f"port {node.settings.amqp_port}"
    return f"{port}, process {node.pid}" if node.is_running else f"{port}, not running"


def _broker(folder: Path) -> BrokerNode | BrokerCluster | None:
    """Find the broker of this folder, running or not; None when none was ever started there."""
    if BrokerCluster.is_in(folder):
        return BrokerCluster.load(folder)
    return BrokerNode.load(folder) if (folder / "node.json").exists() else None


def _nodes(broker: BrokerNode | BrokerCluster) -> tuple[BrokerNode, ...]:
    return (broker,) if isinstance(broker, BrokerNode) else broker.nodes
