"""`fluffle dashboard`: a page that shows a federation at work, and updates by itself."""

from __future__ import annotations

from typing import ClassVar

import typer
from pydantic import Field

from fluffle.command_line import settings_command
from fluffle.settings import SharedSettings
from fluffle.stopping import stop_on_signals
from fluffle_cli.dashboard.server import serving
from fluffle_cli.dashboard.watch import Watch

DEFAULT_PORT = 8089


class DashboardSettings(SharedSettings):
    """Flags of `fluffle dashboard`, keys of the table [dashboard]."""

    part: ClassVar[str] = "dashboard"

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. On any but loopback the page is behind a token, which stands in "
        "the printed address.",
    )
    port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="Port to listen on; 0 for any that is free.")


def run(settings: DashboardSettings) -> None:
    """Serve the page until SIGTERM or Ctrl-C."""
    stop = stop_on_signals()
    watch = Watch(settings, stop)
    with serving(watch, settings.host, settings.port) as server:
        typer.echo(f"the live page of {settings.federation}: {server.url}")
        watch.run()


command = settings_command(
    DashboardSettings,
    run,
    about="Show a federation in the browser: accuracy, updates, staleness, workers, refusals, takeovers.\n\n"
    "It only reads, waits for a federation that is not there yet, and may be ended at any time. The role "
    "`monitor` (fluffle user add) is all that it needs.",
    # It waits for as long as it takes.
    without=("connect_timeout_s",),
)
