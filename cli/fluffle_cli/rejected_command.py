"""`fluffle rejected list|show|requeue|discard`: the messages that aggregators refused."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import ClassVar

import numpy as np
import typer
from pydantic import Field
from rich.filesize import decimal
from rich.progress import track

from fluffle import logs
from fluffle.broker import Broker
from fluffle.command_line import new_app, settings_command
from fluffle.compression import decompressed
from fluffle.connection import found_federation
from fluffle.consoles import print_table
from fluffle.errors import ConfigError, WireError
from fluffle.model import Vector
from fluffle.topology import Topology, topology_of
from fluffle.wire import decode_inbound
from fluffle_cli.query_settings import JsonLines, QuerySettings, Yes, is_confirmed
from fluffle_cli.rejected import (
    RejectedMessage,
    Selection,
    printable,
    read_rejected,
    remove,
    send_again,
    summary_of,
)

Fact = tuple[str, str]

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

    as_json: JsonLines = False


class ShowSettings(RejectedSettings):
    """Flags of `fluffle rejected show`."""

    which: str = Field(
        description="Numbers from `fluffle rejected list`, ranges or ids: 3,7-9,site-1/4f3a/12. Or all.",
        json_schema_extra={"argument": True},
    )


class ChangeSettings(ShowSettings):
    """Flags of `fluffle rejected requeue` and `discard`."""

    yes: Yes = False


def _list(settings: ListSettings) -> None:
    """List the refused messages with their reasons, and count them by reason and worker.

    Example: `fluffle rejected list --reason too-stale`. The command changes nothing. Then look at one message
    with `fluffle rejected show 3`.
    """
    wanted = Selection(("all",), settings.reason, settings.worker)
    with _connected(settings) as (broker, topology):
        shown = [message for message, _ in read_rejected(broker, topology) if message in wanted]
    if settings.as_json:
        for message in shown:
            typer.echo(json.dumps(message.as_json()))
        return
    if shown:
        rows = (
            (str(each.number), each.reason, each.worker, each.id, decimal(each.size_bytes), _refused_at(each))
            for each in shown
        )
        print_table(("#", "reason", "worker", "id", "size", "refused"), rows)
    typer.echo(summary_of(shown))


def _show(settings: ShowSettings) -> None:
    """Show everything about messages: why they were refused, what they say, whether their vectors hold NaN.

    Example: `fluffle rejected show 3`.
    """
    with _connected(settings) as (broker, topology):
        chosen = [(message, message_facts(body)) for message, body in _chosen(settings, broker, topology)]
    for message, facts in chosen:
        about = message.as_json() | {"at": _refused_at(message)}
        for name, value in [*about.items(), *facts]:
            typer.echo(f"{name.replace('_', ' '):<14} {printable(str(value))}")
        typer.echo("")


def _requeue(settings: ChangeSettings) -> None:
    """Send refused messages to the aggregator again, each one as the user that sent it first.

    Example: `fluffle rejected requeue all --reason too-stale`. Do this after you have changed a limit of the
    aggregator or the plan, because the aggregator checks them again like new ones. Messages refused as
    `duplicate` or `finished` come back: the model contains them already, or has ended.

    A message leaves F.rejected only after the broker has confirmed it in F.updates. The broker's user needs
    the right to write to F.updates, and the tag impersonator.
    """
    try:
        # A queue may hold 1 GiB, too much for the memory.
        with tempfile.TemporaryFile() as bodies, _connected(settings) as (broker, topology):
            chosen = []
            for message, body in _chosen(settings, broker, topology):
                bodies.write(body)
                chosen.append(message)
            bodies.seek(0)
            again = send_again(broker, topology, chosen, bodies)
            _run_if_confirmed(
                settings, chosen, again, action="send them to the aggregator again", done="sent again"
            )
    except OSError as error:
        raise ConfigError(
            f"cannot write to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to another folder"
        ) from error


def _discard(settings: ChangeSettings) -> None:
    """Remove refused messages for good. All other messages stay.

    Example: `fluffle rejected discard 1-20`.
    """
    with _connected(settings) as (broker, topology):
        chosen = [message for message, _ in _chosen(settings, broker, topology)]
        removed = remove(broker, topology, chosen)
        _run_if_confirmed(settings, chosen, removed, action="remove them for good", done="removed")


def message_facts(body: bytes) -> list[Fact]:
    """Return the fields of a message and statistics of its vector, or why it cannot be read."""
    try:
        message = decode_inbound(body)
    except WireError as error:
        return [("cannot be read", str(error)), ("begins with", bytes(body[:32]).hex(" "))]
    facts = [("kind", type(message).__name__)]
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name == "vector":
            facts += _vector_facts(decompressed(value))
        else:
            facts.append((field.name, f"{len(value)} bytes" if isinstance(value, bytes) else str(value)))
    return facts


def _vector_facts(vector: Vector) -> Iterator[Fact]:
    yield "parameters", f"{vector.size:,}"
    finite = vector[np.isfinite(vector)]
    yield "NaN", f"{np.count_nonzero(np.isnan(vector)):,}"
    yield "infinite", f"{np.count_nonzero(np.isinf(vector)):,}"
    if finite.size:
        # In float64, a little at a time: a square of a large float32 would overflow.
        squared = float(np.einsum("i,i->", finite, finite, dtype=np.float64, casting="safe"))
        yield "finite values", f"min {finite.min():.4g}, max {finite.max():.4g}, L2 norm {squared**0.5:.4g}"


def _chosen(
    settings: ShowSettings, broker: Broker, topology: Topology
) -> Iterator[tuple[RejectedMessage, bytes]]:
    """Yield the chosen messages and their bodies; ConfigError at the end names those that are not there."""
    wanted, found = Selection.parse(settings.which, reason=settings.reason, worker=settings.worker), []
    for message, body in read_rejected(broker, topology):
        if message in wanted:
            found.append(message)
            yield message, body
    wanted.require_match(found)


def _run_if_confirmed(
    settings: ChangeSettings,
    chosen: list[RejectedMessage],
    finished: Iterator[RejectedMessage],
    *,
    action: str,
    done: str,
) -> None:
    """Ask, then do it message by message with a progress bar; say how many are done, also after an error."""
    typer.echo(summary_of(chosen))
    if not chosen or not is_confirmed(action, yes=settings.yes):
        return
    number_of = 0
    try:
        for _ in track(finished, done, total=len(chosen), transient=True, console=logs.console()):
            number_of += 1
    finally:
        typer.echo(f"{number_of:,} of {len(chosen):,} {done}")


def _refused_at(message: RejectedMessage) -> str:
    return "unknown" if message.at is None else f"{datetime.fromtimestamp(message.at):%Y-%m-%d %H:%M:%S}"


@contextmanager
def _connected(settings: RejectedSettings) -> Iterator[tuple[Broker, Topology]]:
    topology = topology_of(settings.federation)
    with found_federation(settings, topology, name=f"{settings.federation}/rejected") as broker:
        yield broker, topology


app.command("list")(settings_command(ListSettings, _list))
app.command("show")(settings_command(ShowSettings, _show))
app.command("requeue")(settings_command(ChangeSettings, _requeue))
app.command("discard")(settings_command(ChangeSettings, _discard))
