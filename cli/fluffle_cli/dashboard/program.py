"""The live page as a program of its own, and beside another one.

The server is imported where it is needed: it takes a moment to load, and most commands do without.
"""

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
from fluffle_cli.dashboard.settings import DashboardSettings
from fluffle_cli.dashboard.watch import Watch

log = get_logger(__name__)


def run(settings: DashboardSettings) -> None:
    """Serve the page until SIGTERM or Ctrl-C."""
    from fluffle_cli.dashboard.server import PageServer, serving

    stop = stop_on_signals()
    watch = Watch(settings, stop)
    with serving(PageServer(watch, settings.dashboard_host, settings.dashboard_port)) as server:
        typer.echo(f"the live page of {settings.federation}: {server.url}")
        watch.run()


@contextmanager
def a_page(settings: DashboardSettings, say: Callable[[str], None]) -> Iterator[None]:
    """Serve the page while the block lasts, give `say` its address, and open it where there is a display.

    It takes any free port when the one in the settings is taken. An error of the page does not disturb the
    block.
    """
    from fluffle_cli.dashboard.server import PageServer, serving

    stop = threading.Event()
    watch = Watch(settings, stop)

    def watch_until_stopped() -> None:
        try:
            watch.run()
        except FluffleError as error:
            log.warning("the live page has ended", because=str(error))

    try:
        server = PageServer(watch, settings.dashboard_host, settings.dashboard_port)
    except ConfigError:
        server = PageServer(watch, settings.dashboard_host, 0)
    thread = threading.Thread(target=watch_until_stopped, name="watch", daemon=True)
    with serving(server):
        say(server.url)
        if _has_display():
            webbrowser.open(server.url)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _has_display() -> bool:
    return sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
