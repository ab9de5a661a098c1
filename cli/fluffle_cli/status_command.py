"""`fluffle status`: how far a federation is, once or again and again, for people or for programs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import ClassVar

import typer
from pydantic import Field

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import settings_command
from fluffle.connection import connect, federation_connector
from fluffle.consoles import PlainConsole
from fluffle.policy_watch import policy_watch_of
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.settings import ManagementUrl
from fluffle.stopping import stop_on_signals
from fluffle.topology import topology_of
from fluffle_cli.following import following
from fluffle_cli.plain_json import as_text
from fluffle_cli.query_settings import AskingSettings
from fluffle_cli.screen import Screen
from fluffle_cli.snapshot import Snapshot, SnapshotReader, read_the_past, take_snapshot
from fluffle_cli.view import render

Show = Callable[[Snapshot], None]


class StatusSettings(AskingSettings):
    """Flags of `fluffle status`, keys of the table [status]."""

    part: ClassVar[str] = "status"

    watch: bool = Field(
        False,
        description="Look again and again, until the federation has finished, or once.",
        json_schema_extra={"opposite": "--once"},
    )
    management_url: ManagementUrl = Field(
        None,
        description="RabbitMQ's management interface, which is asked for policies that would lose messages, "
        "and answers the user of a monitor. By default http://HOST:15672 (https://HOST:15671 for amqps://) "
        "if the broker's own port is the usual one too.",
    )
    interval: float = Field(2.0, ge=0.1, description="Seconds from one look to the next.")
    as_json: bool = Field(
        False,
        description="Print one JSON object for each look, one a line.",
        json_schema_extra={"flag": "--json"},
    )


def run(settings: StatusSettings) -> None:
    """Show the federation once, or until it has finished or Ctrl-C."""
    stop = stop_on_signals()
    topology = topology_of(settings.federation)
    name = f"{settings.federation}/status"
    policies = policy_watch_of(settings, settings.management_url)
    if not settings.watch:
        with _display(settings) as show, connect(settings, name=name, stop=stop) as broker:
            snapshot = take_snapshot(broker, topology)
            policies.look()
            show(replace(snapshot, policy_faults=policies.faults))
        return
    # Whoever watches may come before the federation does.
    patient = settings.model_copy(update={"connect_timeout_s": inf})
    lookout = SnapshotReader(topology)
    with _display(settings) as show, policies.watching():

        def watch(broker: Broker) -> None:
            policies.look()
            # Anew for each connection: RabbitMQ may keep the last one's queue until it misses its heartbeats.
            listener = f"status-{secrets.token_hex(4)}"
            read_the_past(broker, topology, lookout.history)
            with following(broker, topology, name=listener) as version:
                while not stop.is_set():
                    snapshot = lookout.look(broker, version.newest())
                    show(replace(snapshot, policy_faults=policies.faults))
                    if snapshot.finished:
                        return
                    stop.wait(settings.interval)

        connector = federation_connector(patient, topology, name=name, stop=stop)
        run_with_reconnect(connector.connect, until_federation_is_gone(watch), stop)


@contextmanager
def _display(settings: StatusSettings) -> Iterator[Show]:
    """Choose how snapshots are shown; on a terminal a watched one stays in its place."""
    console = PlainConsole()
    if settings.as_json:
        yield lambda snapshot: typer.echo(as_text(snapshot.as_json()))
    elif not settings.watch:
        yield lambda snapshot: console.print(render(snapshot))
    else:
        if console.is_terminal:
            logs.configure(
                settings.log_format,
                verbose=settings.verbose,
                part=settings.part,
                fields=settings.log_fields(),
                console=console,
            )
        with Screen(console) as screen:
            yield screen.show_now


command = settings_command(
    StatusSettings,
    run,
    about="Show a federation's version, accuracy, updates a second, queues and workers.\n\n"
    "It only reads, and looks once (--once, which is the default); with --watch again and again, until the "
    "federation has finished. --json is for programs: `fluffle status --once --json` prints one object. A "
    "watcher reads a version's record when an aggregator tells of one, at most once a second. Without the "
    "rights of a monitor, who may listen, it reads the newest model at every look. Where it may ask "
    "RabbitMQ's management interface, it warns of policies that would lose messages.",
)
