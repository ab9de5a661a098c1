"""`fluffle rejected list|show|requeue|discard`: the messages that aggregators refused."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, ClassVar

import typer
from pydantic import Field
from rich.filesize import decimal
from rich.progress import track

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import new_app, settings_command
from fluffle.connection import found_federation
from fluffle.consoles import print_table
from fluffle.errors import ConfigError
from fluffle.topology import Topology, topology_of
from fluffle_cli.message_facts import Fact, message_facts
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.rejected import (
    RejectedMessage,
    Selection,
    counted,
    printable,
    read_rejected,
    remove,
    send_again,
)

app = new_app(
    "Look at the messages that the aggregator refused, send them again, or remove them.\n\n"
    "They are in the queue F.rejected. Begin with `fluffle rejected list`."
)


class RejectedSettings(QuerySettings):
    """Flags of every `fluffle rejected ...`."""

    part: ClassVar[str] = "rejected"

    reason: str | None = Field(None, description="Only messages refused for this reason, such as too-stale.")
    worker: str | None = Field(None, description="Only messages of this worker.")


class ListSettings(RejectedSettings):
    """Flags of `fluffle rejected list`."""

    as_json: bool = Field(
        False,
        description="Print one JSON object per line, one for each message.",
        json_schema_extra={"flag": "--json"},
    )


class ShowSettings(RejectedSettings):
    """Flags of `fluffle rejected show`."""

    which: str = Field(
        description="Numbers from `fluffle rejected list`, ranges or ids: 3,7-9,site-1/4f3a/12. Or all.",
        json_schema_extra={"argument": True},
    )


class ChangeSettings(ShowSettings):
    """Flags of `fluffle rejected requeue` and `discard`."""

    yes: bool = Field(False, description="Do not ask for confirmation.")


def _list(settings: ListSettings) -> None:
    wanted = Selection(("all",), settings.reason, settings.worker)
    with _connected(settings) as (broker, topology):
        shown = [message for message, _ in read_rejected(broker, topology) if message in wanted]
    if settings.as_json:
        for message in shown:
            typer.echo(json.dumps(message.as_json()))
        return
    if shown:
        rows = (
            (str(each.number), each.reason, each.worker, each.id, decimal(each.size_bytes), _when(each))
            for each in shown
        )
        print_table(("#", "reason", "worker", "id", "size", "refused"), rows)
    typer.echo(counted(shown))


def _show(settings: ShowSettings) -> None:
    facts: list[list[Fact]] = []
    with _connected(settings) as (broker, topology):
        chosen = _chosen(settings, broker, topology, lambda body: facts.append(message_facts(body)))
    for message, in_body in zip(chosen, facts, strict=True):
        about = message.as_json() | {"at": _when(message)}
        for name, value in [*about.items(), *in_body]:
            typer.echo(f"{name.replace('_', ' '):<14} {printable(str(value))}")
        typer.echo("")


def _requeue(settings: ChangeSettings) -> None:
    with _temporary_file() as bodies, _connected(settings) as (broker, topology):
        chosen = _chosen(settings, broker, topology, bodies.write)
        if _is_confirmed(settings, "send to the aggregator again", chosen):
            bodies.seek(0)
            _follow(send_again(broker, topology, chosen, bodies), "sent again", len(chosen))


def _discard(settings: ChangeSettings) -> None:
    with _connected(settings) as (broker, topology):
        chosen = _chosen(settings, broker, topology, len)
        if _is_confirmed(settings, "remove for good", chosen):
            _follow(remove(broker, topology, chosen), "removed", len(chosen))


def _chosen(
    settings: ShowSettings, broker: Broker, topology: Topology, keep: Callable[[bytes], object]
) -> list[RejectedMessage]:
    """Return the chosen messages in their order, after `keep` was called with the body of each."""
    wanted = Selection.parse(settings.which, reason=settings.reason, worker=settings.worker)
    chosen = []
    for message, body in read_rejected(broker, topology):
        if message in wanted:
            keep(body)
            chosen.append(message)
    wanted.require_match(chosen)
    return chosen


def _is_confirmed(settings: ChangeSettings, action: str, chosen: list[RejectedMessage]) -> bool:
    """Show what was chosen and ask, unless --yes is given; False if there is nothing to do."""
    typer.echo(counted(chosen))
    if not chosen or settings.yes:
        return bool(chosen)
    if not sys.stdin.isatty():
        raise ConfigError(f"there is no terminal to ask at: give --yes to {action}")
    if typer.confirm(f"{action[:1].upper()}{action[1:]}?"):
        return True
    typer.echo("nothing was changed")
    return False


def _follow(done: Iterator[RejectedMessage], action: str, count: int) -> None:
    """Do it message by message with a progress bar, and say how many are done, also after an error."""
    finished = 0
    try:
        for _ in track(done, action, total=count, transient=True, console=logs.console()):
            finished += 1
    finally:
        typer.echo(f"{finished:,} of {count:,} {action}")


def _when(message: RejectedMessage) -> str:
    return "unknown" if message.at is None else f"{datetime.fromtimestamp(message.at):%Y-%m-%d %H:%M:%S}"


@contextmanager
def _temporary_file() -> Iterator[IO[bytes]]:
    """Give an unnamed file for the bodies: a queue may hold 1 GiB, too much for the memory."""
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except OSError as error:
        raise ConfigError(
            f"cannot write the messages to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to another "
            "folder"
        ) from error


@contextmanager
def _connected(settings: RejectedSettings) -> Iterator[tuple[Broker, Topology]]:
    topology = topology_of(settings.federation)
    with found_federation(settings, topology, name=f"{settings.federation}/rejected") as broker:
        yield broker, topology


app.command("list")(
    settings_command(
        ListSettings,
        _list,
        about="List the refused messages with their reasons, and count them by reason and worker.\n\n"
        "Example: `fluffle rejected list --reason too-stale`. The command changes nothing. Then look at one "
        "message with `fluffle rejected show 3`.",
    )
)
app.command("show")(
    settings_command(
        ShowSettings,
        _show,
        about="Show everything about messages: why they were refused, what they say, and whether their "
        "vectors hold NaN.\n\n"
        "Example: `fluffle rejected show 3`.",
    )
)
app.command("requeue")(
    settings_command(
        ChangeSettings,
        _requeue,
        about="Send refused messages to the aggregator again, each one as the user that sent it first.\n\n"
        "Example: `fluffle rejected requeue all --reason too-stale`. Do this after you have changed a limit "
        "of the aggregator or the plan, because the aggregator checks them again like new ones. Messages "
        "refused as `duplicate` or `finished` come back: the model contains them already, or has ended. "
        "Messages that no aggregator survived (`delivery-limit`, `crashes`) are tried again too.\n\n"
        "A message leaves F.rejected only after the broker has confirmed it in F.updates. If this command is "
        "killed in between, the message is in both queues and still counts once.\n\n"
        "The broker's user needs the right to write to F.updates, and the tag impersonator.",
    )
)
app.command("discard")(
    settings_command(
        ChangeSettings,
        _discard,
        about="Remove refused messages for good. All other messages stay.\n\n"
        "Example: `fluffle rejected discard 1-20`.",
    )
)
