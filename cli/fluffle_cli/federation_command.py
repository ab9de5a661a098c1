"""`fluffle federation list|show|delete|reset`: the federations of a virtual host, and how to start over."""

import json
import threading
from collections.abc import Collection, Iterator
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
from fluffle.management import ADMINISTRATOR, MONITORING, Management, ManagementSettings
from fluffle.rights import require_federation_name
from fluffle_cli.federations import (
    FederationFacts,
    Footprint,
    all_footprints,
    connected_parts,
    facts_of,
    waiting,
)
from fluffle_cli.query_settings import JsonLines, QuerySettings, Yes, is_confirmed
from fluffle_cli.restoring import begin_anew, highest_term
from fluffle_cli.users import USER_COLUMNS, user_rows
from fluffle_cli.words import count, in_a_row

app = new_app("List, show, delete and reset the federations of a virtual host.")
# The argument names the federation, or the command is about all of them.
WITHOUT = ("federation",)


class FederationSettings(QuerySettings, ManagementSettings):
    """Flags of every `fluffle federation ...`."""


class ListSettings(FederationSettings):
    """Flags of `fluffle federation list`."""

    as_json: JsonLines = False


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

    yes: Yes = False
    force: bool = Field(False, description="Do it even while parts of the federation are connected.")


def _list(settings: ListSettings) -> None:
    """List the federations of the virtual host: newest version, workers, state, and what waits there.

    Example: `fluffle federation list`. The login needs the tag monitoring or administrator in RabbitMQ (roles
    monitor and operator). The version is only shown to users that may read it.
    """
    with _connected(settings, tag=MONITORING) as (management, broker):
        found = [each for each in all_footprints(management).values() if each.is_federation]
        shown = track(found, "reading", transient=True, console=logs.console())
        facts = [facts_of(each, broker) for each in shown]
    if settings.as_json:
        for each in facts:
            typer.echo(json.dumps(asdict(each)))
    elif facts:
        columns = ("federation", "version", "updates", "workers", "state", "waiting", "refused", "")
        print_table(columns, map(_row, facts))
    else:
        typer.echo(f"There is no federation on the virtual host {management.vhost}.")


def _show(settings: ShowSettings) -> None:
    """Show a federation: its newest version, its queues, its connected parts and its users.

    Example: `fluffle federation show digits`.
    """
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
    """Delete all exchanges and queues of a federation, and all messages in them. Its users stay.

    Example: `fluffle federation delete digits`. It asks you to type the name, unless you give --yes, and
    refuses while parts of the federation are connected, unless you give --force. Save the model first with
    `fluffle model export`.
    """
    with _connected(settings) as (management, broker):
        if footprint := _confirmed(settings, "delete", management, broker):
            _delete_all(management, footprint)
            typer.echo("Its users stay: see `fluffle user list` and `fluffle user remove`.")


def _reset(settings: DeleteSettings) -> None:
    """Start over: delete all that a federation has on the broker, and create it again, empty.

    Example: `fluffle federation reset digits`. Stop the aggregators first; with --force they end with an
    error. Workers and evaluators may keep running: they wait, and work on with the new federation; their old
    updates never count. Then start an aggregator: it begins at version 0.
    """
    with _connected(settings) as (management, broker):
        footprint = _confirmed(settings, "reset", management, broker, stopped="aggregator ")
        if footprint is None:
            return
        topology = footprint.topology
        above = highest_term(broker, topology)
        # Listed before the deletion, because workers then connect again.
        parts = connected_parts(management, settings.name)
        # Whoever listens to the events stays bound to their exchange.
        kept = (topology.models.name, topology.events.name, topology.member_events_in.name)
        _delete_all(management, footprint, keep=kept)
        begin_anew(broker, topology, above_term=above)
    typer.echo(
        f"The federation {settings.name} is empty now and has the same users: the next aggregator that "
        "starts begins at version 0."
    )
    if others := [part for part in parts if not part.startswith("aggregator ")]:
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


def _confirmed(
    settings: DeleteSettings, action: str, management: Management, broker: Broker, *, stopped: str = ""
) -> Footprint | None:
    """Show what would be lost, and ask for the federation's name; None if the user does not confirm.

    Raises ConfigError while parts of the kind that must be `stopped` are connected, unless --force is given.
    """
    footprint = _require(management, settings.name)
    topology = footprint.topology
    parts = [each for each in connected_parts(management, settings.name) if each.startswith(stopped)]
    if parts and not settings.force:
        raise ConfigError(
            f"parts of the federation {settings.name!r} are connected: {_names(parts)}. Stop them, or give "
            "--force: then aggregators end with an error, and the others wait for the federation to come back"
        )
    _print_queues(footprint)
    models, updates, rejected = (
        waiting(broker, footprint, queue.name)
        for queue in (topology.models, topology.updates, topology.rejected)
    )
    typer.echo(
        f"This will be lost: every version of the model ({models:,} in {topology.models.name}; `fluffle "
        f"model export` saves one), {count(updates, 'message')} for the aggregator, most of them updates, "
        f"{count(rejected, 'refused message')}."
    )
    is_sure = is_confirmed(f"{action} this federation", yes=settings.yes, answer=settings.name)
    return footprint if is_sure else None


def _delete_all(management: Management, footprint: Footprint, *, keep: Collection[str] = ()) -> None:
    """Delete all but what `keep` names, and say how much was deleted, also after an error.

    The queue of a listener is left alone: only its own connection may delete it, and it ends with that.
    """
    exchanges = queues = 0
    try:
        # First: what is published from then on is refused, and so stays with its sender.
        for name in footprint.exchanges:
            exchanges += name not in keep and management.delete("exchanges", name)
        for queue in footprint.queues:
            is_kept = queue.is_exclusive or queue.name in keep
            queues += not is_kept and management.delete("queues", queue.name)
    finally:
        typer.echo(
            f"Deleted {exchanges} exchanges with their bindings and {queues} queues of the federation "
            f"{footprint.topology.federation}."
        )
    if footprint.others:
        typer.echo(f"Not deleted, because Fluffle did not create it: {', '.join(footprint.others)}.")


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


def _names(parts: list[str]) -> str:
    return in_a_row(parts, most=8) or "nobody"


@contextmanager
def _connected(
    settings: FederationSettings, *, tag: str = ADMINISTRATOR
) -> Iterator[tuple[Management, Broker]]:
    with (
        settings.management(tag=tag) as management,
        connect(settings, name="federations", stop=threading.Event()) as broker,
    ):
        yield management, broker


app.command("list")(settings_command(ListSettings, _list, without=WITHOUT))
app.command("show")(settings_command(ShowSettings, _show, without=WITHOUT))
app.command("delete")(settings_command(DeleteSettings, _delete, without=WITHOUT))
app.command("reset")(settings_command(DeleteSettings, _reset, without=WITHOUT))
