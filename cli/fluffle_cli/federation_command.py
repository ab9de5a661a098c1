"""`fluffle federation list|show|delete|reset`: the federations of a virtual host, and how to start over."""

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import typer
from pydantic import Field, field_validator
from rich.filesize import decimal
from rich.progress import track

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import new_app, settings_command
from fluffle.connection import connect
from fluffle.consoles import print_table
from fluffle.errors import AccessRefused, ConfigError, TopologyMissing
from fluffle.management import ADMINISTRATOR, MONITORING, Kind, Management, ManagementSettings
from fluffle.rights import require_federation_name
from fluffle_cli.federations import (
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
from fluffle_cli.users import USER_COLUMNS, user_rows
from fluffle_cli.words import count

app = new_app("List, show, delete and reset the federations of a virtual host.")


class FederationSettings(ManagementSettings):
    """Flags of every `fluffle federation ...`."""

    connect_timeout_s: float = Field(5.0, gt=0, description="Seconds to wait for a broker that is not there.")


class ListSettings(FederationSettings):
    """Flags of `fluffle federation list`."""

    as_json: bool = Field(
        False,
        description="Print one JSON object per line, one for each federation.",
        json_schema_extra={"flag": "--json"},
    )


class ShowSettings(FederationSettings):
    """Flags of `fluffle federation show`."""

    name: str = Field(description="Name of the federation.", json_schema_extra={"argument": True})

    @field_validator("name")
    @classmethod
    def _is_a_federation(cls, name: str) -> str:
        return require_federation_name(name)

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {"federation": self.name}


class DeleteSettings(ShowSettings):
    """Flags of `fluffle federation delete` and `reset`."""

    yes: bool = Field(False, description="Do not ask for confirmation.")
    force: bool = Field(False, description="Do it even while parts of the federation are connected.")


def _list(settings: ListSettings) -> None:
    with _connected(settings, tag=MONITORING) as (management, broker):
        found = [each for each in all_footprints(management).values() if each.is_federation]
        shown = track(found, "reading", transient=True, console=logs.console())
        facts = [facts_of(each, broker) for each in shown]
        vhost = management.vhost
    if settings.as_json:
        for each in facts:
            typer.echo(json.dumps(asdict(each)))
    elif facts:
        columns = ("federation", "version", "updates", "workers", "state", "waiting", "refused", "")
        print_table(columns, map(_row, facts))
    else:
        typer.echo(f"There is no federation on the virtual host {vhost}.")


def _show(settings: ShowSettings) -> None:
    with _connected(settings, tag=MONITORING) as (management, broker):
        footprint = _require(management, settings.name)
        facts = facts_of(footprint, broker)
        parts = connected_parts(management, settings.name)
        users = None
        with suppress(AccessRefused):
            users = user_rows(management, settings.name)
    version = "none yet"
    if facts.updates is not None:
        version = f"{facts.version} (term {facts.term}), {facts.updates:,} updates"
    typer.echo(f"federation  {settings.name}")
    typer.echo(f"version     {version}")
    typer.echo(f"state       {_state(facts)}{f'; {facts.trouble}' if facts.trouble else ''}")
    typer.echo(f"connected   {_names(parts)}\n")
    _print_queues(footprint)
    if users is None:
        typer.echo("\nIts users are shown to administrators only.")
    else:
        typer.echo("")
        print_table(USER_COLUMNS, users)


def _delete(settings: DeleteSettings) -> None:
    with _connected(settings) as (management, broker):
        footprint = _require(management, settings.name)
        parts = connected_parts(management, settings.name)
        if parts and not settings.force:
            raise ConfigError(
                f"parts of the federation {settings.name!r} are connected: {_names(parts)}. Stop them, or "
                "give --force: then aggregators end with an error, and the others wait for it to come back"
            )
        if _is_confirmed(settings, "delete", footprint, broker):
            _delete_all(management, footprint)
            typer.echo("Its users stay: see `fluffle user list` and `fluffle user remove`.")


def _reset(settings: DeleteSettings) -> None:
    with _connected(settings) as (management, broker):
        footprint = _require(management, settings.name)
        parts = connected_parts(management, settings.name)
        aggregators = [part for part in parts if part.startswith("aggregator ")]
        if aggregators and not settings.force:
            raise ConfigError(
                f"aggregators of the federation {settings.name!r} are connected: {_names(aggregators)}. Stop "
                "them, or give --force: then they end with an error, and you must start one again"
            )
        if not _is_confirmed(settings, "reset", footprint, broker):
            return
        topology = footprint.topology
        above = highest_term(broker, topology)
        _delete_all(management, footprint, keep=topology.models.name)
        begin_anew(broker, topology, above_term=above)
    typer.echo(
        f"The federation {settings.name} is empty now and has the same users: the next aggregator that "
        "starts begins at version 0."
    )
    others = [part for part in parts if part not in aggregators]
    if others:
        typer.echo(f"Still connected; they work on with the new federation: {_names(others)}.")


def _require(management: Management, name: str) -> Footprint:
    """Return what a federation has; TopologyMissing if there is no federation of this name."""
    found = all_footprints(management)
    footprint = found.get(name)
    if footprint is None or not (footprint.queues or footprint.exchanges):
        there = ", ".join(each for each, one in found.items() if one.is_federation) or "none"
        raise TopologyMissing(
            f"there is no federation {name!r} on the virtual host {management.vhost!r}; there is: {there}"
        )
    return footprint


def _delete_all(management: Management, footprint: Footprint, *, keep: str | None = None) -> None:
    """Delete, and say how much was deleted, also after an error."""
    deleted: Counter[Kind] = Counter()
    try:
        deleted.update(delete(management, footprint, keep=keep))
    finally:
        typer.echo(
            f"Deleted {deleted['exchanges']} exchanges with their bindings and {deleted['queues']} queues of "
            f"the federation {footprint.topology.federation}."
        )
    if footprint.others:
        typer.echo(f"Not deleted, because Fluffle did not create it: {', '.join(footprint.others)}.")


def _is_confirmed(settings: DeleteSettings, action: str, footprint: Footprint, broker: Broker) -> bool:
    """Show what would be lost, and ask for the federation's name, unless --yes is given."""
    _print_queues(footprint)
    topology = footprint.topology
    models, updates, rejected = (
        waiting(broker, footprint, queue.name)
        for queue in (topology.models, topology.updates, topology.rejected)
    )
    typer.echo(
        f"This will be lost: every version of the model ({models:,} in {topology.models.name}; `fluffle "
        f"model export` saves one), {count(updates, 'update')} that no version contains yet, "
        f"{count(rejected, 'refused message')}."
    )
    if settings.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            f"there is no terminal to ask at: give --yes to {action} the federation {settings.name!r}"
        )
    typed = typer.prompt(f"Type the federation's name to {action} it", default="", show_default=False)
    if typed == settings.name:
        return True
    typer.echo("That is not its name: nothing was changed.")
    return False


def _print_queues(footprint: Footprint) -> None:
    rows = (
        (queue.name, f"{queue.messages:,}", "" if queue.size_bytes is None else decimal(queue.size_bytes))
        for queue in sorted(footprint.queues, key=lambda row: row.name)
    )
    print_table(("queue", "messages", "bytes"), rows)


def _row(facts: FederationFacts) -> tuple[str, ...]:
    known = ("" if each is None else f"{each:,}" for each in (facts.version, facts.updates))
    counts = (f"{each:,}" for each in (facts.waiting, facts.rejected))
    return facts.federation, *known, f"{facts.workers:,}", _state(facts), *counts, facts.trouble


def _state(facts: FederationFacts) -> str:
    if facts.finished:
        return f"finished: {facts.finished}"
    return "an aggregator leads" if facts.aggregator_leads else "no aggregator"


def _names(parts: list[str], most: int = 8) -> str:
    more = f" and {len(parts) - most:,} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more or "nobody"


@contextmanager
def _connected(
    settings: FederationSettings, *, tag: str = ADMINISTRATOR
) -> Iterator[tuple[Management, Broker]]:
    with (
        settings.management(tag=tag) as management,
        connect(settings, name="federations", stop=threading.Event()) as broker,
    ):
        yield management, broker


# The argument names the federation, or the command is about all of them.
WITHOUT = ("federation",)

app.command("list")(
    settings_command(
        ListSettings,
        _list,
        about="List the federations of the virtual host: newest version, workers, state, and what waits in "
        "their queues.\n\n"
        "Example: `fluffle federation list`. The login needs the tag monitoring or administrator in RabbitMQ "
        "(roles monitor and operator). The version is only shown to users that may read it.",
        without=WITHOUT,
    )
)
app.command("show")(
    settings_command(
        ShowSettings,
        _show,
        about="Show a federation: its newest version, its queues, its connected parts and its users.\n\n"
        "Example: `fluffle federation show digits`.",
        without=WITHOUT,
    )
)
app.command("delete")(
    settings_command(
        DeleteSettings,
        _delete,
        about="Delete all exchanges and queues of a federation, and all messages in them. Its users stay.\n\n"
        "Example: `fluffle federation delete digits`. It asks you to type the name, unless you give --yes, "
        "and refuses while parts of the federation are connected, unless you give --force. Save the model "
        "first with `fluffle model export`.",
        without=WITHOUT,
    )
)
app.command("reset")(
    settings_command(
        DeleteSettings,
        _reset,
        about="Start over: delete all that a federation has on the broker, and create it again, empty.\n\n"
        "Example: `fluffle federation reset digits`. Stop the aggregators first; with --force they end with "
        "an error. Workers and evaluators may keep running: they wait, and work on with the new federation; "
        "their old updates never count. Then start an aggregator: it begins at version 0.",
        without=WITHOUT,
    )
)
