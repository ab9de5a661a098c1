"""`fluffle report`: one page of a run, from its folder or from what RabbitMQ still has of a federation."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Final

import typer
from pydantic import Field
from rich.progress import track

from fluffle import logs
from fluffle.command_line import settings_command
from fluffle.connection import found_federation
from fluffle.errors import AccessRefused, ConfigError, TopologyMissing
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology, topology_of
from fluffle.whole_file import write_whole
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.rejected import read_rejected
from fluffle_cli.report.page import page
from fluffle_cli.report.run import (
    EVENTS,
    METRICS,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    make_empty_folder,
    read_run,
    versions_in_use,
    write_summary,
)
from fluffle_cli.watching.state import REJECTED
from fluffle_cli.watching.view import Happening
from fluffle_cli.watching.watcher import all_versions

FILE: Final = "report.html"
log = logs.get_logger(__name__)


class ReportSettings(QuerySettings):
    """Flags of `fluffle report`, keys of the table [report]."""

    part: ClassVar[str] = "report"

    folder: str = Field(
        description="Folder of the run, such as `fluffle demo` makes: runs/NAME.",
        json_schema_extra={"argument": True},
    )
    # Not `compare`, which is a setting of the demo and says yes or no.
    compare_with: str | None = Field(
        None,
        description="Folders of other runs, with commas between them: the page compares this run with them.",
        json_schema_extra={"flag": "--compare"},
    )
    from_broker: bool = Field(
        False, description="First make the folder from what RabbitMQ still has of --federation."
    )


def run(settings: ReportSettings) -> None:
    """Write the page, and say where it is."""
    folder = Path(settings.folder)
    if settings.from_broker:
        topology = topology_of(settings.federation)
        name = f"{settings.federation}/report"
        with found_federation(settings, topology, name=name) as broker:
            make_run(broker, topology, folder)
    names = [each.strip() for each in (settings.compare_with or "").split(",")]
    others = [read_run(Path(each)) for each in names if each]
    typer.echo(f"the report is {write_report(read_run(folder), others)}")


def write_report(shown: Run, others: list[Run]) -> Path:
    """Write the page of a run into its folder, and return where it is."""
    path = shown.folder / FILE
    try:
        write_whole(path, [page(shown, others).encode("utf-8", "replace")])
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"nothing can be drawn of what is in {shown.folder}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be written: {error.strerror}") from error
    return path


def make_run(broker: RabbitBroker, topology: Topology, folder: Path) -> None:
    """Write a run's folder: the federation's versions, as far back as the stream has them, and its refusals.

    Raises ConfigError when the folder has something in it, and TopologyMissing when there is no version. The
    connection is of no use for anything else afterwards.
    """
    make_empty_folder(folder)
    records = all_versions(broker, topology)
    versions = list(track(records, "reading the records", transient=True, console=logs.console()))
    if not versions:
        raise TopologyMissing(f"the federation {topology.federation!r} has no version yet")
    append_lines(folder / METRICS, versions)
    newest = versions[-1]
    about = AboutFederation(strategy=newest.strategy.partition("(")[0], folder=".")
    federation = FederationRun(about=about, versions=versions)
    plan = {f"plan: {name.replace('_', ' ')}": str(value) for name, value in asdict(newest.plan).items()}
    size = f"{newest.parameters:,}"
    about_run = About(
        task=topology.federation,
        runs=[about],
        metric_shown=federation.view.metric or "accuracy",
        settings={"federation": newest.federation, "strategy": newest.strategy, "parameters": size, **plan},
        versions=versions_in_use(broker.server),
    )
    write_summary(Run(folder=folder, about=about_run, federations=[federation]))
    try:
        append_lines(folder / EVENTS, _refusals(broker, topology))
    except (AccessRefused, ConfigError) as error:
        log.warning("the report does not say why messages were refused", because=str(error))


def _refusals(broker: RabbitBroker, topology: Topology) -> Iterator[Happening]:
    for message, _ in read_rejected(broker, topology):
        yield Happening(
            at=message.at or 0.0,
            name=message.worker,
            what=REJECTED,
            reason=message.reason,
            detail=f"{message.id}: {message.detail}" if message.id else message.detail,
        )


command = settings_command(
    ReportSettings,
    run,
    about="Write one page (report.html) of a run that has finished into its folder.\n\n"
    "The page needs no other file and no network: curves, staleness, contributions, what was refused, what "
    "happened when, settings and versions. The folder is that of a `fluffle demo`. For any other federation, "
    "--from-broker makes one from the records that the stream still holds; why messages were refused is in "
    "it if this user may look into F.rejected.",
)
