"""`fluffle broker up|down|status`: a private RabbitMQ in a folder, for a person at a terminal."""

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
from fluffle_cli.rabbitmq_server import SERVER_FOLDER_VARIABLE, NodeTls

DEFAULT_FOLDER = Path(".fluffle/broker")

app = new_app(
    "Start and stop a private RabbitMQ: in one folder, on 127.0.0.1 only, beside any other RabbitMQ on this "
    "machine. Or prepare another RabbitMQ for Fluffle (setup, certs)."
)

Folder = Annotated[
    Path,
    typer.Option(
        "--folder",
        envvar="FLUFFLE_BROKER_FOLDER",
        metavar="PATH",
        help="Folder for the broker's data, logs and password; each folder is another broker.",
    ),
]


@app.command(
    "up",
    help="Start the broker in the background, wait until it is ready (about 7 s), and print how to reach "
    "it.\n\n"
    "Example: `fluffle broker up`. Then export the variables that it prints, and start `fluffle aggregator` "
    "and `fluffle worker`. A stopped broker in the folder comes back with its queues, messages, user and "
    "password, and with all its nodes. A running broker is left as it is.",
    epilog=f"The server is the installed one, or the one in the folder that {SERVER_FOLDER_VARIABLE} names.",
)
@clean_exit()
def _up(
    folder: Folder = DEFAULT_FOLDER,
    management: Annotated[
        bool, typer.Option(help="Start RabbitMQ's UI; without it the broker starts a little faster.")
    ] = True,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Use TLS, with certificates for development, created in the folder."),
    ] = False,
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of nodes; a cluster of 3 works on when one node dies.")
    ] = 1,
) -> None:
    _begin()
    broker = _find(folder)
    if broker is not None and all(node.is_running for node in broker.nodes):
        how = "is already running"
    else:
        certificates = _certificates_in(folder) if tls else None
        with PlainConsole(stderr=True).status("starting RabbitMQ"):
            if nodes > 1 or isinstance(broker, BrokerCluster):
                size = nodes if nodes > 1 or broker is None else len(broker.nodes)
                broker = BrokerCluster.start(folder, size=size, management=management, tls=certificates)
            else:
                broker = BrokerNode.start(folder, management=management, tls=certificates)
        broker.outlive()
        how = "is running"
    first = broker.nodes[0]
    processes = ", ".join(str(node.pid) for node in broker.nodes)
    option = "" if folder == DEFAULT_FOLDER else f" --folder {quote(str(folder))}"
    url = broker.management_url
    typer.echo(f"RabbitMQ {how} in {folder} (process {processes}).")
    if url is not None:
        typer.echo(f"  its UI     {url}   user {first.user}   password {first.password}")
    typer.echo(f"  for parts  export FLUFFLE_BROKER_URL={broker.amqp_url}")
    if first.authority is not None:
        typer.echo(f"             export FLUFFLE_BROKER_CA_FILE={quote(str(first.authority))}")
    if url is not None:
        typer.echo(f"  for users  export FLUFFLE_MANAGEMENT_URL={url}")
    typer.echo(f"  to stop    fluffle broker down{option}")


@app.command()
@clean_exit()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the broker cleanly. Its data stay in the folder, and `fluffle broker up` continues with them."""
    _begin()
    broker = _find(folder)
    was_running = broker is not None and any(node.is_running for node in broker.nodes)
    if not was_running:
        typer.echo(f"No RabbitMQ is running in {folder}.")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Say whether the broker is running, and how to reach it. The exit code is 1 if it is not running.

    A cluster counts as running while more than half of its nodes are.
    """
    _begin()
    broker = _find(folder)
    running = broker is not None and broker.is_running
    facts: dict[str, str | int | None] = {"folder": str(folder)}
    if broker is not None:
        first = broker.nodes[0]
        if isinstance(broker, BrokerNode):
            facts["pid"] = broker.pid if running else None
        else:
            facts |= {node.folder.name: _state(node) for node in broker.nodes}
        facts |= {
            "amqp_url": broker.amqp_url,
            "management_url": broker.management_url,
            "user": first.user,
            "password": first.password,
            "broker_ca_file": None if first.authority is None else str(first.authority),
        }
    if as_json:
        typer.echo(json.dumps({"running": running} | facts))
    else:
        table = Table("RabbitMQ", "running" if running else "not running", show_edge=False)
        for name, fact in facts.items():
            if fact is not None:
                table.add_row(name.replace("_", " "), str(fact))
        # Wide enough that no URL is broken into two lines: people copy it.
        PlainConsole(width=max(PlainConsole().width, 140), highlight=False, markup=False).print(table)
    if not running:
        raise typer.Exit(1)


def _begin() -> None:
    logs.configure("pretty", verbose=False, part="broker")
    warn_of_unknown_variables()


def _certificates_in(folder: Path) -> NodeTls:
    """Create the missing certificates in a folder, and keep the others."""
    # Imported here, so that --help is quick.
    from fluffle_cli.certificates import make_certificates

    certificates = folder / "certificates"
    make_private_folder(folder)
    make_certificates(certificates)
    return NodeTls(certificates)


def _state(node: BrokerNode) -> str:
    return f"port {node.settings.amqp_port}, " + (f"process {node.pid}" if node.is_running else "not running")


def _find(folder: Path) -> BrokerNode | BrokerCluster | None:
    """Return the broker in this folder, running or not; None if none was ever started there."""
    if BrokerCluster.is_in(folder):
        return BrokerCluster.load(folder)
    return BrokerNode.load(folder) if (folder / "node.json").exists() else None
