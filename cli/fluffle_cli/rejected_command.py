"""`fluffle rejected`: looks at what was refused, gives it another chance, or throws it away."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, ClassVar

import typer
from pydantic import Field
from rich.console import Console
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table
from rich.text import Text

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import new_app, settings_command
from fluffle.connection import found_federation
from fluffle.consoles import PlainConsole, table_console
from fluffle.errors import ConfigError
from fluffle.topology import Topology, topology_of
from fluffle_cli.message_facts import message_facts
from fluffle_cli.query_settings import AskingSettings
from fluffle_cli.rejected import (
    MOST_AT_ONCE,
    RejectedMessage,
    Selection,
    look_through,
    printable,
    put_into_queue,
    remove,
    summary,
    waiting,
)
from fluffle_cli.unconsumed import is_unconsumed

app = new_app("Look at the updates that were refused, give them another chance, or throw them away.")


class RejectedSettings(AskingSettings):
    """Flags of every `fluffle rejected ...`."""

    part: ClassVar[str] = "rejected"

    reason: str | None = Field(None, description="Only those refused for this reason, such as too-stale.")
    worker: str | None = Field(None, description="Only those of this worker.")


class ListSettings(RejectedSettings):
    """Flags of `fluffle rejected list`."""

    as_json: bool = Field(
        False,
        description="Print one JSON object for each message, one a line.",
        json_schema_extra={"flag": "--json"},
    )


class ShowSettings(RejectedSettings):
    """Flags of `fluffle rejected show`."""

    which: str = Field(
        description="Numbers of `fluffle rejected list`, ranges, or ids: 3,7-9,site-1/4f3a/12; or all.",
        json_schema_extra={"argument": True},
    )


class ChangeSettings(ShowSettings):
    """Flags of `fluffle rejected requeue` and `discard`."""

    yes: bool = Field(False, description="Do it without asking.")


def list_messages(settings: ListSettings) -> None:
    """Print what waits in F.rejected, and count it by reason and worker."""
    wanted = Selection(is_all=True, reason=settings.reason, worker=settings.worker)
    with _connected(settings) as (broker, topology):
        shown = [message for message, _ in looked_through(broker, topology) if message in wanted]
    if settings.as_json:
        for message in shown:
            typer.echo(json.dumps(message.as_json()))
        return
    # A line per message, also where no terminal says how wide it is.
    console = table_console(160)
    if shown:
        table = Table("#", "reason", "worker", "id", "size", "refused", show_edge=False)
        for message in shown:
            row = (message.reason, message.worker, message.id, decimal(message.size_bytes), _when(message))
            table.add_row(str(message.number), *map(Text, row))
        console.print(table)
    _say(console, _counted(shown))


def show(settings: ShowSettings) -> None:
    """Print all that is known of the chosen messages."""
    wanted = _wanted(settings)
    with _connected(settings) as (broker, topology):
        found = [
            (message, message_facts(body))
            for message, body in looked_through(broker, topology)
            if message in wanted
        ]
    wanted.require_match([message for message, _ in found])
    console = PlainConsole()
    for message, facts in found:
        about = message.as_json() | {"at": _when(message)}
        for name, value in [*about.items(), *facts]:
            _say(console, f"{name.replace('_', ' '):<14} {printable(str(value))}")
        _say(console, "")


def requeue(settings: ChangeSettings) -> None:
    """Send the chosen messages to the aggregator anew."""
    with _on_disk() as bodies, _connected(settings) as (broker, topology):
        chosen = _chosen(settings, broker, topology, bodies.write)
        if _agreed(settings, "send to the aggregator again", chosen):
            bodies.seek(0)
            _follow(put_into_queue(broker, topology, chosen, bodies), "sent again", len(chosen))


def discard(settings: ChangeSettings) -> None:
    """Remove the chosen messages for good."""
    with _connected(settings) as (broker, topology):
        chosen = _chosen(settings, broker, topology, len)
        if _agreed(settings, "remove for good", chosen):
            _follow(remove(broker, topology, chosen), "removed", len(chosen))


def _wanted(settings: ShowSettings) -> Selection:
    return Selection.parse(settings.which, reason=settings.reason, worker=settings.worker)


def _chosen(
    settings: ChangeSettings, broker: Broker, topology: Topology, keep: Callable[[bytes], int]
) -> list[RejectedMessage]:
    """Return the chosen messages, in their order, each body once given to `keep`."""
    wanted = _wanted(settings)
    chosen = []
    for message, body in looked_through(broker, topology):
        if message in wanted:
            keep(body)
            chosen.append(message)
    wanted.require_match(chosen)
    return chosen


def looked_through(broker: Broker, topology: Topology) -> Iterator[tuple[RejectedMessage, bytes]]:
    """Yield what waits in F.rejected with its body, at most MOST_AT_ONCE, and show how far it is.

    Raises ConfigError while somebody else looks, and AccessRefused without the right to. For one look on each
    connection.
    """
    queue = topology.rejected.name
    if not is_unconsumed(broker, queue):
        raise ConfigError(f"somebody else looks through {queue} now: try again when they have ended")
    count = waiting(broker, topology)
    if count > MOST_AT_ONCE:
        _say(logs.console(), f"{count:,} messages wait in {queue}: looking at the {MOST_AT_ONCE:,} in front")
    deliveries = look_through(broker, topology, count)
    shown = track(
        deliveries, "looking", total=min(count, MOST_AT_ONCE), transient=True, console=logs.console()
    )
    for number, delivery in enumerate(shown, 1):
        yield RejectedMessage.of(delivery, number), delivery.body


def _agreed(settings: ChangeSettings, deed: str, chosen: list[RejectedMessage]) -> bool:
    """Ask, unless told not to; there must be something to do and somebody to ask."""
    console = PlainConsole()
    _say(console, _counted(chosen))
    if not chosen or settings.yes:
        return bool(chosen)
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody is at the terminal to ask: give --yes to {deed}")
    if typer.confirm(f"{deed[:1].upper()}{deed[1:]}?"):
        return True
    _say(console, "nothing was changed")
    return False


def _follow(done: Iterator[RejectedMessage], deed: str, count: int) -> None:
    """Let it be done, one after another, and say how many were."""
    finished = 0
    try:
        for _ in track(done, deed, total=count, transient=True, console=logs.console()):
            finished += 1
    finally:
        _say(PlainConsole(), f"{finished:,} of {count:,} {deed}")


def _counted(messages: list[RejectedMessage]) -> str:
    if not messages:
        return "no message that was asked for waits there"
    reasons, workers = summary(messages)
    size = decimal(sum(message.size_bytes for message in messages))
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    by_worker = ", ".join(f"{worker or 'unknown'} {count:,}" for worker, count in workers.most_common())
    messages_in_words = "1 message" if len(messages) == 1 else f"{len(messages):,} messages"
    return f"{messages_in_words}, {size}: {by_reason}; from {by_worker}"


def _when(message: RejectedMessage) -> str:
    return "unknown" if message.at is None else f"{datetime.fromtimestamp(message.at):%Y-%m-%d %H:%M:%S}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _on_disk() -> Iterator[IO[bytes]]:
    """Give a file without a name, for what is too large to hold: a queue may have 1 GiB."""
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except OSError as error:
        raise ConfigError(
            f"cannot keep the messages in {tempfile.gettempdir()} meanwhile: {error.strerror}; TMPDIR names "
            "another folder"
        ) from error


@contextmanager
def _connected(settings: RejectedSettings) -> Iterator[tuple[Broker, Topology]]:
    topology = topology_of(settings.federation)
    name = f"{settings.federation}/rejected"
    with found_federation(settings, topology, name=name) as broker:
        yield broker, topology


app.command("list")(
    settings_command(
        ListSettings,
        list_messages,
        about="List the refused messages with their reasons, and count them by reason and worker.\n\n"
        "Looking changes nothing.",
    )
)
app.command("show")(
    settings_command(
        ShowSettings,
        show,
        about="Show all about one message: why it was refused, what it says, what its vector is like.",
    )
)
app.command("requeue")(
    settings_command(
        ChangeSettings,
        requeue,
        about="Send refused messages to the aggregator again, each as the user that sent it.\n\n"
        "It judges them anew: after a change of its limits or its plan they may be let in. What was refused "
        "as duplicate or finished comes back here: the model contains it already, or learns no more. What no "
        "aggregator survived (delivery-limit, crashes) is tried again too. A message leaves the queue only "
        "when the broker has confirmed it in the other one; if this command dies between the two, it is in "
        "both, and still counts once.\n\n"
        "The broker's user needs the right to write to F.updates, and the tag impersonator.",
    )
)
app.command("discard")(
    settings_command(ChangeSettings, discard, about="Remove refused messages for good. The others stay.")
)
