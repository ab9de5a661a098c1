"""`fluffle dashboard`: the live page as a program of its own, and beside another one.

The server is imported where it is needed: it takes a moment to load, and most commands do without.
"""

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import ClassVar

import typer
from pydantic import Field

from fluffle.broker import Broker
from fluffle.command_line import settings_command
from fluffle.connection import federation_connector
from fluffle.errors import BrokerError, ConfigError, FluffleError
from fluffle.logs import get_logger
from fluffle.management import MONITORING, ManagementSettings
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.stopping import stop_on_signals
from fluffle.topology import topology_of
from fluffle_cli.watching.watcher import Watcher

log = get_logger(__name__)

PAST_MIB = 64
# RabbitMQ itself counts every 5 s.
ASK_EVERY_S = 5.0
AFTER_TROUBLE_S = 10.0


class DashboardSettings(ManagementSettings):
    """Flags of `fluffle dashboard`, keys of the table [dashboard]."""

    part: ClassVar[str] = "dashboard"
    is_service: ClassVar[bool] = True

    dashboard_host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Unless it is loopback, the page requires the token in the printed "
        "address.",
    )
    dashboard_port: int = Field(
        8089, ge=0, le=65535, description="Port to listen on; 0 for any that is free."
    )


class Watch:
    """Keeps what the page shows of one federation up to date; any thread may take a view of it."""

    def __init__(self, settings: ManagementSettings, stop: threading.Event) -> None:
        """Watch as `settings` say, until `stop` is set."""
        self._settings = settings
        self._stop = stop
        self._topology = topology_of(settings.federation)
        self._watcher = Watcher(self._topology, name="dashboard", past_mib=PAST_MIB)
        self._watcher.say("connecting to the broker")
        self.view = self._watcher.view
        self._asks_for_consumers = False

    def run(self) -> None:
        """Follow until `stop` is set, with new connections as they are lost.

        It waits for a broker or a federation that is not there. Raises LoginRefused or AccessRefused when the
        broker does not let this user in, or not listen.
        """
        connector = federation_connector(
            self._settings.model_copy(update={"connect_timeout_s": inf}),
            self._topology,
            name=f"{self._settings.federation}/dashboard",
            stop=self._stop,
            on_wait=self._watcher.say,
        )
        try:
            run_with_reconnect(connector.connect, until_federation_is_gone(self._follow), self._stop)
        except FluffleError as error:
            # Beside a demo the page is still there.
            self._watcher.say(str(error))
            raise

    def _follow(self, broker: Broker) -> None:
        try:
            for _ in self._watcher.follow(broker, self._stop):
                self._watcher.say("")
                self._ask_for_consumers()
        except BrokerError as error:
            # It may take seconds until the next connection is tried.
            self._watcher.say(str(error))
            raise

    def _ask_for_consumers(self) -> None:
        """Start to, once this user was let in to listen: a refusal is then the last thing that is said."""
        if not self._asks_for_consumers:
            self._asks_for_consumers = True
            threading.Thread(target=self._watch_consumers, name="consumers", daemon=True).start()

    def _watch_consumers(self) -> None:
        """Ask RabbitMQ again and again who leads and who stands by: a standby that waits says nothing.

        Where no management interface answers this user, it says so once, and tries again now and then.
        """
        said, own = "", f"{self._topology.federation}/aggregator/"
        while not self._stop.is_set():
            try:
                with self._settings.management(tag=MONITORING) as management:
                    while not self._stop.is_set():
                        consumers = management.consumers_of(self._topology.updates.name).items()
                        self._watcher.note_aggregators(
                            {tag.removeprefix(own): leads for tag, leads in consumers if tag.startswith(own)}
                        )
                        self._stop.wait(ASK_EVERY_S)
            except FluffleError as error:
                self._watcher.note_aggregators(None)
                if str(error) != said:
                    said = str(error)
                    log.info("standbys are known only once they say something", because=said)
                self._stop.wait(AFTER_TROUBLE_S)


def run(settings: DashboardSettings) -> None:
    """Serve the page until SIGTERM or Ctrl-C."""
    from fluffle_cli.dashboard.server import PageServer, serving

    watch = Watch(settings, stop_on_signals())
    with serving(PageServer(watch.view, settings.dashboard_host, settings.dashboard_port)) as server:
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
        # The page itself says why.
        with suppress(FluffleError):
            watch.run()

    try:
        server = PageServer(watch.view, settings.dashboard_host, settings.dashboard_port)
    except ConfigError:
        server = PageServer(watch.view, settings.dashboard_host, 0)
    thread = threading.Thread(target=watch_until_stopped, name="watch", daemon=True)
    with serving(server):
        say(server.url)
        has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        if has_display or sys.platform in {"darwin", "win32"}:
            webbrowser.open(server.url)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


command = settings_command(
    DashboardSettings,
    run,
    about="Show a federation in the browser: accuracy, updates, staleness, workers, refusals, takeovers.\n\n"
    "It only reads, waits for a federation that is not there yet, and may be ended at any time. The role "
    "`monitor` (fluffle user add) is all that it needs.",
    # It waits for as long as it takes.
    without=("connect_timeout_s",),
)
