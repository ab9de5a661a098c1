"""`fluffle status`: how far a federation is, once or again and again, for people or for programs."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
from fluffle_cli.plain_json import as_text
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.watching.as_json import with_workers
from fluffle_cli.watching.terminal import Screen, render
from fluffle_cli.watching.view import FederationView
from fluffle_cli.watching.watcher import Watcher

Show = Callable[[FederationView], None]
# It is read in a second or two, over a slow link too.
PAST_MIB = 8


class StatusSettings(QuerySettings):
    """Flags of `fluffle status`, keys of the table [status]."""

    part: ClassVar[str] = "status"

    watch: bool = Field(
        False,
        description="Repeat until the federation has finished (--watch), or show once (--once).",
        json_schema_extra={"opposite": "--once"},
    )
    management_url: ManagementUrl = Field(
        None,
        description="URL of RabbitMQ's management interface, to warn of policies that would lose messages; a "
        "monitor may ask it. Default: http://HOST:15672 (https://HOST:15671 for amqps://), if the broker "
        "itself uses its default port.",
    )
    interval: float = Field(2.0, ge=0.1, description="Seconds from one look to the next.")
    as_json: bool = Field(
        False,
        description="Print JSON, one object a line.",
        json_schema_extra={"flag": "--json"},
    )


def run(settings: StatusSettings) -> None:
    """Show the federation once, or until it has finished or Ctrl-C."""
    stop = stop_on_signals()
    topology = topology_of(settings.federation)
    name = f"{settings.federation}/status"
    policies = policy_watch_of(settings, settings.management_url)
    watcher = Watcher(topology, name="status", past_mib=PAST_MIB)
    if not settings.watch:
        with _display(settings) as show, connect(settings, name=name, stop=stop) as broker:
            view = watcher.look_once(broker)
            policies.look()
            show(replace(view, policy_faults=policies.faults))
        return
    # The command may be started before the federation.
    patient = settings.model_copy(update={"connect_timeout_s": inf})
    with _display(settings) as show, policies.watching():

        def watch(broker: Broker) -> None:
            policies.look()
            looks = watcher.follow(broker, stop, every_s=settings.interval, must_listen=False)
            with closing(looks):
                for _ in looks:
                    view = watcher.view()
                    show(replace(view, policy_faults=policies.faults))
                    if view.finished:
                        return

        connector = federation_connector(patient, topology, name=name, stop=stop)
        run_with_reconnect(connector.connect, until_federation_is_gone(watch), stop)


@contextmanager
def _display(settings: StatusSettings) -> Iterator[Show]:
    """Choose how views are shown; on a terminal a watched one stays in its place."""
    console = PlainConsole()
    if settings.as_json:
        yield lambda view: typer.echo(as_text(with_workers(view)))
    elif not settings.watch:
        yield lambda view: console.print(render(view))
    else:
        if console.is_terminal:
            logs.configure(
                settings.log_format,
                verbose=settings.verbose,
                part=settings.part,
                fields=settings.log_fields(),
                console=console,
            )
        with Screen.on(console) as screen:
            yield screen.show_now


command = settings_command(
    StatusSettings,
    run,
    about="Show a federation's version, accuracy, updates a second, queues and workers.\n\n"
    "Shows the state once; with --watch, until the federation has finished. It changes nothing. --json is "
    "for programs: `fluffle status --once --json` prints one object. A watcher reads a version's record when "
    "an aggregator announces one, at most once a second. A user without the rights of a monitor may not "
    "listen, and reads the newest record at every look. If it may ask RabbitMQ's management interface, it "
    "warns of policies that would lose messages.",
)
