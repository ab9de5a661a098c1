"""The live page as a program of its own, and beside another one."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from fluffle.errors import ConfigError, FluffleError
from fluffle.logs import get_logger
from fluffle.stopping import stop_on_signals
from fluffle_cli.dashboard.server import PageServer, serving
from fluffle_cli.dashboard.settings import DashboardSettings
from fluffle_cli.dashboard.watch import Watch

log = get_logger(__name__)


def run(settings: DashboardSettings) -> None:
    """Serve the page until SIGTERM or Ctrl-C."""
    stop = stop_on_signals()
    watch = Watch(settings, stop)
    with serving(PageServer(watch, settings.dashboard_host, settings.dashboard_port)) as server:
        typer.echo(f"the live page of {settings.federation}: {server.url}")
        watch.run()


@contextmanager
def a_page(settings: DashboardSettings, say: Callable[[str], None]) -> Iterator[None]:
    """Serve the page while the block lasts, `say` where, and open it where there is a display.

    Where its port is taken it is any that is free. What goes wrong with it does not disturb the block.
    """
    stop = threading.Event()
    watch = Watch(settings, stop)

    def run_to_the_end() -> None:
        try:
            watch.run()
        except FluffleError as error:
            log.warning("the live page has ended", because=str(error))

    try:
        server = PageServer(watch, settings.dashboard_host, settings.dashboard_port)
    except ConfigError:
        server = PageServer(watch, settings.dashboard_host, 0)
    thread = threading.Thread(target=run_to_the_end, name="watch", daemon=True)
    with serving(server):
        say(server.url)
        if has_display():
            webbrowser.open(server.url)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def has_display() -> bool:
    """Tell whether a browser could be opened for somebody to see."""
    return sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
