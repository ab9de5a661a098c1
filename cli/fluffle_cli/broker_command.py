"""`fluffle broker up|down|status`: a private RabbitMQ in a folder, for a person at a terminal."""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from fluffle import logs
from fluffle.command_line import new_app, plain_command, warn_of_unknown_variables
from fluffle.consoles import PlainConsole
from fluffle_cli.certificates import make_certificates
from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import SERVER_FOLDER_VARIABLE

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
    epilog=f"The server is the installed one, or the one in the folder that {SERVER_FOLDER_VARIABLE} names."
)
@plain_command
def up(
    folder: Folder = DEFAULT_FOLDER,
    management: Annotated[
        bool, typer.Option(help="Start RabbitMQ's UI; without it the broker starts a little faster.")
    ] = True,
    tls: Annotated[
        bool | None,
        typer.Option(
            help="Use TLS, with certificates for development, created in the folder. Without this flag, a "
            "stopped broker comes back as it was, and a new one has no TLS.",
        ),
    ] = None,
) -> None:
    """Start the broker in the background, wait until it is ready (about 7 s), and print how to reach it.

    Example: `fluffle broker up`. Then export the variables that it prints, and start `fluffle aggregator` and
    `fluffle worker`. A stopped broker in the folder comes back with its queues, messages, user, password
    and TLS. A running broker is left as it is.
    """
    node, how = _find(folder), "is already running"
    if node is None or not node.is_running:
        had_tls = node is not None and node.certificates is not None
        uses_tls = had_tls if tls is None else tls
        how, certificates = "is running", folder / "certificates" if uses_tls else None
        if certificates:
            make_certificates(certificates)
        with PlainConsole(stderr=True).status("starting RabbitMQ"):
            node = BrokerNode.start(folder, management=management, certificates=certificates)
        node.outlive()
    typer.echo(f"RabbitMQ {how} in {folder} (process {node.pid}).")
    if node.has_management:
        typer.echo(f"  its UI     {node.management_url}   user {node.user}   password {node.password}")
    typer.echo(f"  for parts  export FLUFFLE_BROKER_URL={node.amqp_url}")
    if node.authority is not None:
        typer.echo(f"             export FLUFFLE_BROKER_CA_FILE={quote(str(node.authority))}")
    if node.has_management:
        typer.echo(f"  for users  export FLUFFLE_MANAGEMENT_URL={node.management_url}")
    option = "" if folder == DEFAULT_FOLDER else f" --folder {quote(str(folder))}"
    typer.echo(f"  to stop    fluffle broker down{option}")


@app.command()
@plain_command
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the broker cleanly. Its data stay in the folder, and `fluffle broker up` continues with them."""
    node = _find(folder)
    was_running = node is not None and node.is_running
    if node is not None:  # a crash leaves something to tidy up, too
        with PlainConsole(stderr=True).status("stopping RabbitMQ"):
            node.stop()
    has_stopped = f"RabbitMQ in {folder} has stopped; its data are still there."
    typer.echo(has_stopped if was_running else f"No RabbitMQ is running in {folder}.")


@app.command()
@plain_command
def status(
    folder: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Say whether the broker is running, and how to reach it. The exit code is 1 if it is not running."""
    node = _find(folder)
    running = node is not None and node.is_running
    facts: dict[str, object] = {"running": running, "folder": str(folder)}
    if node is not None:
        facts |= {
            "pid": node.pid if running else None,
            "amqp_url": node.amqp_url,
            "management_url": node.management_url,
            "user": node.user,
            "password": node.password,
            "broker_ca_file": node.authority and str(node.authority),
        }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        facts["running"] = "yes" if running else "no"
        typer.echo("\n".join(f"{name:<16}{fact}" for name, fact in facts.items() if fact is not None))
    if not running:
        raise typer.Exit(1)


def _find(folder: Path) -> BrokerNode | None:
    """Return the node in this folder, running or not; None if none was ever started there."""
    logs.configure("pretty", verbose=False, part="broker")
    warn_of_unknown_variables()
    return BrokerNode.load(folder) if BrokerNode.is_in(folder) else None
