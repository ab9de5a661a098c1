"""`fluffle privacy status`: how much of their promise the workers of a federation have spent."""

from dataclasses import asdict
from typing import ClassVar

import typer
from pydantic import Field

from fluffle.connection import found_federation
from fluffle.consoles import print_table
from fluffle.errors import ConfigError, TopologyMissing
from fluffle.model_stream import record_at_hand
from fluffle.topology import topology_of
from fluffle_cli.plain_json import as_text
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.watching.privacy import spent_by_worker, spent_privacy
from fluffle_cli.watching.view import Version

# A terminal has no room for thousands; --json has all.
MOST_NAMED = 50


class PrivacyStatusSettings(QuerySettings):
    """Flags of `fluffle privacy status`, keys of the table [privacy_status]."""

    part: ClassVar[str] = "privacy_status"

    as_json: bool = Field(
        False,
        description="Print one JSON object, with all workers.",
        json_schema_extra={"flag": "--json"},
    )


def status(settings: PrivacyStatusSettings) -> None:
    """Show what was promised to the workers of a federation, and how much of it each has spent.

    It reads the newest record, as any user of the federation may. The epsilon of the federation is that of
    its most active worker.
    """
    topology = topology_of(settings.federation)
    with found_federation(settings, topology, name=f"{settings.federation}/privacy") as broker:
        record = record_at_hand(broker, topology)
    if record is None:
        raise TopologyMissing(
            f"the federation {settings.federation!r} has no version yet: start its aggregator"
        )
    newest = Version.of(record)
    found, workers = spent_privacy(newest), spent_by_worker(newest)
    if found is None:
        raise ConfigError(
            f"the federation {settings.federation!r} has no differential privacy: a new one has it when its "
            "aggregator is started with --dp"
        )
    if settings.as_json:
        known = {"federation": settings.federation, "version": newest.version, **asdict(found)}
        by_name = {each.name: {"updates": each.updates, "epsilon": each.epsilon} for each in workers}
        typer.echo(as_text({**known, "by_worker": by_name}))
        return
    typer.echo(f"{found.promise}\n\nversion {newest.version}, {found.in_words}\n")
    rows = [
        (each.name, f"{each.updates} of {found.updates}", f"{each.epsilon:.3g}")
        for each in workers[:MOST_NAMED]
    ]
    print_table(("worker", "updates", "epsilon"), rows)
    if len(workers) > MOST_NAMED:
        typer.echo(f"and {len(workers) - MOST_NAMED} more; --json has all")
