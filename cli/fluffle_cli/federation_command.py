"""`fluffle federation list|show|delete|reset`: the federations of a virtual host, and how to start over."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator

import typer
from pydantic import Field, field_validator
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table
from rich.text import Text

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import new_app, settings_command
from fluffle.connection import connect
from fluffle.consoles import PlainConsole, table_console
from fluffle.errors import AccessRefused, ConfigError, TopologyMissing
from fluffle.management import MONITORING
from fluffle.rabbit import RabbitBroker
from fluffle.rights import require_federation_name
from fluffle_cli.federations import (
    ConnectedPart,
    FederationFacts,
    Footprint,
    all_footprints,
    begin_anew,
    connected_parts,
    delete,
    facts_of,
    highest_term,
    waiting,
)
from fluffle_cli.management import Kind, Management, ManagementSettings
from fluffle_cli.user_command import shown_membership
from fluffle_cli.users import FederationUser, federation_users

app = new_app("List, show, delete and reset the federations of a virtual host.")


class FederationSettings(ManagementSettings):
    """Flags of every `fluffle federation ...`."""

    connect_timeout_s: float = Field(5.0, gt=0, description="Seconds to wait for a broker that is not there.")


class ListSettings(FederationSettings):
    """Flags of `fluffle federation list`."""

    as_json: bool = Field(
        False,
        description="Print one JSON object for each federation, one a line.",
        json_schema_extra={"flag": "--json"},
    )


class OneSettings(FederationSettings):
    """Flags of `fluffle federation show`."""

    name: str = Field(description="The federation.", json_schema_extra={"argument": True})

    @field_validator("name")
    @classmethod
    def _is_a_federation(cls, name: str) -> str:
        return require_federation_name(name)

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {"federation": self.name}


class EndSettings(OneSettings):
    """Flags of `fluffle federation delete` and `reset`."""

    yes: bool = Field(False, description="Do it without asking.")
    force: bool = Field(False, description="Do it though parts of the federation are connected.")


def list_federations(settings: ListSettings) -> None:
    """Print a line for each federation."""
    with Management(settings, tag=MONITORING) as management, _connected(settings) as broker:
        found = [each for each in all_footprints(management).values() if each.is_federation]
        looked_at = track(found, "looking", transient=True, console=logs.console())
        facts = [facts_of(each, broker) for each in looked_at]
        where = management.vhost
    if settings.as_json:
        for each in facts:
            typer.echo(json.dumps(each.as_json()))
        return
    if not facts:
        _say(f"There is no federation on the virtual host {where}.")
        return
    columns = "federation", "version", "updates", "workers", "state", "waiting", "refused", ""
    table = Table(*columns, show_edge=False)
    for each in facts:
        counts = (
            "" if count is None else f"{count:,}" for count in (each.version, each.updates, each.workers)
        )
        row = (
            each.federation,
            *counts,
            _state(each),
            f"{each.waiting:,}",
            f"{each.rejected:,}",
            each.trouble,
        )
        table.add_row(*map(Text, row))
    # A line per federation, also where no terminal says how wide it is.
    table_console(160).print(table)


def show(settings: OneSettings) -> None:
    """Print what a federation has on the broker, who is connected, and who may be."""
    with Management(settings, tag=MONITORING) as management, _connected(settings) as broker:
        footprint = _require(management, settings.name)
        facts = facts_of(footprint, broker)
        parts = connected_parts(management, settings.name)
        users = _users(management, settings.name)
    version = (
        "none yet"
        if facts.version is None
        else f"{facts.version} (term {facts.term}), {facts.updates:,} updates"
    )
    _say(f"federation  {settings.name}")
    _say(f"version     {version}")
    _say(f"state       {_state(facts)}{f'; {facts.trouble}' if facts.trouble else ''}")
    _say(f"connected   {_listed(parts)}")
    _say("")
    _print_queues(footprint)
    if users is None:
        _say("\nIts users are shown to administrators only.")
        return
    table = Table("user", "role", "federations", "connections", show_edge=False)
    for user in users:
        role, scope = shown_membership(user.membership) or ("none: see `fluffle user list`", "")
        table.add_row(*map(Text, (user.name, role, scope, str(user.connections))))
    _say("")
    table_console(160).print(table)


def end(settings: EndSettings) -> None:
    """Delete all that a federation has on the broker."""
    with Management(settings) as management, _connected(settings) as broker:
        footprint = _require(management, settings.name)
        parts = connected_parts(management, settings.name)
        if parts and not settings.force:
            raise ConfigError(
                f"parts of the federation {settings.name!r} are connected: {_listed(parts)}. Stop them, or "
                "give --force: aggregators then end with an error, the others wait for it to come back"
            )
        _print_queues(footprint)
        if _agreed(settings, "delete", footprint, broker):
            _delete(footprint, delete(management, footprint))
            _say("Its users stay: `fluffle user list`, `fluffle user remove`.")


def reset(settings: EndSettings) -> None:
    """Delete all that a federation has on the broker, and make it anew."""
    with Management(settings) as management, _connected(settings) as broker:
        footprint = _require(management, settings.name)
        parts = connected_parts(management, settings.name)
        leaders = [part for part in parts if part.role == "aggregator"]
        if leaders and not settings.force:
            raise ConfigError(
                f"aggregators of the federation {settings.name!r} are connected: {_listed(leaders)}. Stop "
                "them, or give --force: they then end with an error, and one must be started again"
            )
        _print_queues(footprint)
        if not _agreed(settings, "reset", footprint, broker):
            return
        topology = footprint.topology
        above = highest_term(broker, topology)
        _delete(footprint, delete(management, footprint, keep=topology.models.name))
        begin_anew(broker, topology, above_term=above)
        others = [part for part in parts if part.role != "aggregator"]
        _say(
            f"The federation {settings.name} is there anew and empty, with the same users: the next "
            "aggregator that starts begins at version 0."
        )
        if others:
            _say(f"Still connected, and going on with it: {_listed(others)}.")


def _require(management: Management, name: str) -> Footprint:
    """Return what a federation has; raise TopologyMissing when there is none of this name."""
    found = all_footprints(management)
    footprint = found.get(name)
    if footprint is None or not (footprint.queues or footprint.exchanges):
        there = ", ".join(each for each, one in found.items() if one.is_federation) or "none"
        raise TopologyMissing(
            f"there is no federation {name!r} on the virtual host {management.vhost!r}; there is: {there}"
        )
    return footprint


def _users(management: Management, federation: str) -> list[FederationUser] | None:
    try:
        return federation_users(management, federation)
    except AccessRefused:
        return None


def _delete(footprint: Footprint, deletions: Iterator[tuple[Kind, str]]) -> None:
    """Let it be done, one after another, and say how many were deleted, even if it ends with an error."""
    deleted = {"exchanges": 0, "queues": 0}
    try:
        for kind, _ in deletions:
            deleted[kind] += 1
    finally:
        _say(
            f"Deleted {deleted['exchanges']} exchanges with their bindings and {deleted['queues']} queues of "
            f"the federation {footprint.topology.federation}."
        )
    if footprint.others:
        _say(f"Left as it is, since Fluffle did not make it: {', '.join(footprint.others)}.")


def _agreed(settings: EndSettings, deed: str, footprint: Footprint, broker: Broker) -> bool:
    """Say what would be lost, and let the name be typed, unless told not to ask."""
    topology = footprint.topology
    models, updates, rejected = (
        waiting(broker, footprint, queue.name)
        for queue in (topology.models, topology.updates, topology.rejected)
    )
    _say(
        f"Lost for good: every version of the model ({models:,} in {topology.models.name}; `fluffle model "
        f"export` keeps one), {_counted(updates, 'update')} that no version contains yet, "
        f"{_counted(rejected, 'refused message')}."
    )
    if settings.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            f"nobody is at the terminal to ask: give --yes to {deed} the federation {settings.name!r}"
        )
    typed = typer.prompt(f"Type the federation's name to {deed} it", default="", show_default=False)
    if typed == settings.name:
        return True
    _say("That is not its name: nothing was changed.")
    return False


def _print_queues(footprint: Footprint) -> None:
    table = Table("queue", "messages", "bytes", show_edge=False)
    for queue in sorted(footprint.queues, key=lambda row: row.name):
        size = "" if queue.size_bytes is None else decimal(queue.size_bytes)
        table.add_row(*map(Text, (queue.name, f"{queue.messages:,}", size)))
    table_console(160).print(table)


def _state(facts: FederationFacts) -> str:
    if facts.finished:
        return f"finished: {facts.finished}"
    return "an aggregator leads" if facts.aggregator_leads else "no aggregator"


def _listed(parts: list[ConnectedPart], most: int = 8) -> str:
    shown = ", ".join(map(str, parts[:most]))
    more = f" and {len(parts) - most:,} more" if len(parts) > most else ""
    return f"{shown}{more}" if parts else "nobody"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _connected(settings: FederationSettings) -> RabbitBroker:
    return connect(settings, name="federations", stop=threading.Event())


def _say(line: str) -> None:
    PlainConsole(highlight=False, markup=False, soft_wrap=True).print(line)


# The federation is named by the argument, or all are looked at.
WITHOUT = ("federation",)

app.command("list")(
    settings_command(
        ListSettings,
        list_federations,
        about="List the federations of the virtual host, with what an operator wants to know of each.\n\n"
        "It asks RabbitMQ's management interface, and so needs the tag monitoring or administrator; the "
        "newest version of a federation is read if the user may.",
        without=WITHOUT,
    )
)
app.command("show")(
    settings_command(
        OneSettings,
        show,
        about="Show a federation's newest version, its queues, and who is and who may be connected.",
        without=WITHOUT,
    )
)
app.command("delete")(
    settings_command(
        EndSettings,
        end,
        about="Delete all exchanges and queues of a federation, with all that is in them. Its users stay.\n\n"
        "While parts of it are connected it is refused, unless --force is given. It asks for the name, "
        "unless --yes is given.",
        without=WITHOUT,
    )
)
app.command("reset")(
    settings_command(
        EndSettings,
        reset,
        about="Start over: delete all that a federation has on the broker, and make it anew and empty.\n\n"
        "The next aggregator that starts begins at version 0, with the same users. Workers and evaluators "
        "may stay at work: they wait, and go on with the new federation; what they had for the old one never "
        "counts. Stop the aggregators first; with --force they end with an error.",
        without=WITHOUT,
    )
)
