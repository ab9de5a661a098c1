"""`fluffle status`: how far a federation is, once or again and again, for people or for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import ClassVar

from pydantic import Field
from rich.console import Console
from rich.live import Live

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import settings_command
from fluffle.connection import connect, connect_to_federation
from fluffle.reconnecting import work_with_new_connections
from fluffle.settings import SharedSettings
from fluffle.stopping import stop_on_signals
from fluffle.topology import topology_of
from fluffle_cli.snapshot import Snapshot, take_snapshot
from fluffle_cli.view import History, plain_line, render

Show = Callable[[Snapshot], None]


class StatusSettings(SharedSettings):
    """Flags of `fluffle status`, keys of the table [status]."""

    part: ClassVar[str] = "status"

    watch: bool = Field(False, description="Look again and again, until the federation has finished.")
    interval: float = Field(2.0, ge=0.1, description="Seconds from one look to the next.")
    as_json: bool = Field(
        False,
        description="Print one JSON object for each look, one a line.",
        json_schema_extra={"flag": "--json"},
    )
    # Whoever asks is not to wait for a broker as long as a worker does.
    connect_timeout_s: float = Field(5.0, gt=0, description="Seconds to wait for a broker that is not there.")


def run(settings: StatusSettings) -> None:
    """Show the federation once, or until it has finished or Ctrl-C."""
    stop = stop_on_signals()
    topology = topology_of(settings.federation)
    with _display(settings) as show:

        def look(broker: Broker) -> None:
            snapshot: Snapshot | None = None
            while not stop.is_set():
                snapshot = take_snapshot(broker, topology, before=snapshot)
                show(snapshot)
                if not settings.watch or snapshot.finished:
                    return
                stop.wait(settings.interval)

        name = f"{settings.federation}/status"

        def reach() -> Broker:
            if not settings.watch:
                return connect(settings, name=name, stop=stop)
            # Whoever watches may come before the federation does.
            patient = settings.model_copy(update={"connect_timeout_s": inf})
            return connect_to_federation(patient, topology, name=name, stop=stop)

        work_with_new_connections(reach, look, stop)


@contextmanager
def _display(settings: StatusSettings) -> Iterator[Show]:
    """Choose how snapshots are shown; on a terminal a watched one stays in its place."""
    console = Console()
    history = History()

    def show_line(snapshot: Snapshot) -> None:
        line = json.dumps(snapshot.as_json()) if settings.as_json else plain_line(snapshot)
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    def show_once(snapshot: Snapshot) -> None:
        console.print(render(snapshot))

    if settings.as_json:
        yield show_line
    elif not settings.watch:
        yield show_once
    elif not console.is_terminal:
        yield show_line
    else:
        logs.configure(
            settings.log_format,
            verbose=settings.verbose,
            part=settings.part,
            fields=settings.log_fields(),
            console=console,
        )
        with Live(console=console, auto_refresh=False) as live:

            def show_in_place(snapshot: Snapshot) -> None:
                history.note(snapshot)
                live.update(render(snapshot, history=history), refresh=True)

            yield show_in_place


command = settings_command(
    StatusSettings,
    run,
    about="Show a federation's version, accuracy, updates a second, queues and workers.\n\n"
    "It only reads. With --watch it ends when the federation has finished.",
)
