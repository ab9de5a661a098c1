"""`fluffle trace`: what has become of one update."""

import json
from typing import ClassVar

import typer
from pydantic import Field
from rich.progress import track

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import settings_command
from fluffle.connection import found_federation
from fluffle.errors import AccessRefused, ConfigError, WireError
from fluffle.model_stream import all_records
from fluffle.topology import Topology, topology_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.rejected import printable, read_rejected
from fluffle_cli.tracing import Story, parse_update_id, read_records, story_lines


class TraceSettings(QuerySettings):
    """Flags of `fluffle trace`, keys of the table [trace]."""

    part: ClassVar[str] = "trace"

    update: str = Field(
        description="Its id, as in the logs and in RabbitMQ's message_id: worker/run/sequence.",
        json_schema_extra={"argument": True},
    )
    as_json: bool = Field(False, description="Print one JSON object.", json_schema_extra={"flag": "--json"})


def run(settings: TraceSettings) -> None:
    """Print what has become of an update."""
    update = parse_update_id(settings.update)
    topology = topology_of(settings.federation)
    name = f"{settings.federation}/trace"
    with found_federation(settings, topology, name=name) as broker:
        story = trace(broker, topology, update)
    if settings.as_json:
        typer.echo(json.dumps(story.as_json()))
        return
    for what, said in story_lines(story):
        typer.echo(printable(f"{what:<10} {said}"))


def trace(broker: Broker, topology: Topology, update: UpdateId) -> Story:
    """Look for an update in the records and in F.rejected; without the right to the second, say so.

    The connection must not be used afterwards.
    """
    updates_waiting = broker.state(topology.updates.name).messages
    shown = track(
        all_records(broker, topology), "reading the records", transient=True, console=logs.console()
    )
    records = read_records(update, shown)
    refused, not_looked = None, ""
    try:
        # Last: RabbitMQ closes the channel of a user who may not read it.
        refused = [
            message
            for message, body in read_rejected(broker, topology)
            if (message.id or _id_in(body)) == str(update)
        ]
    except AccessRefused:
        not_looked = "only an operator may read it"
    except ConfigError as error:
        not_looked = str(error)
    return Story(
        federation=topology.federation,
        update=update,
        records=records,
        refused=refused,
        not_looked=not_looked,
        updates_waiting=updates_waiting,
    )


def _id_in(body: bytes) -> str:
    """Read the id of an update that was refused before anybody had read it."""
    try:
        message = decode_inbound(body)
    except WireError:
        return ""
    return str(message.id) if isinstance(message, WeightUpdate) else ""


command = settings_command(
    TraceSettings,
    run,
    about="Say what has become of one update: when it was published and received, with what staleness and "
    "weight it was folded, in which version, or why it was refused.\n\n"
    "It reads the stream of records, as any user of the federation may, and looks through F.rejected, which "
    "takes an operator; a monitor sees what the records say. The id is in the log "
    "lines `update published` of the worker and `refused` or `version committed` of the aggregator.",
)
