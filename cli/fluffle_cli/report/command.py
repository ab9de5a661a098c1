"""`fluffle report`: one page of a finished run, and its pictures."""

from pathlib import Path
from typing import ClassVar

import typer
from pydantic import Field

from fluffle.command_line import settings_command
from fluffle.connection import found_federation
from fluffle.errors import ConfigError
from fluffle.topology import topology_of
from fluffle.whole_file import write_whole
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.report.from_broker import make_run
from fluffle_cli.report.run import Run, read_run

FILE = "report.html"


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
        description="Folders of other runs, with commas between them: their curves lie over this one's.",
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
    """Draw the pictures of a run, write its page beside them, and return where that is."""
    try:
        from fluffle_cli.report import page, pictures  # matplotlib takes long to load
    except ImportError as error:
        raise ConfigError(
            f"the pictures need {error.name}: install it with pip install 'fluffle[report]'"
        ) from error
    path = shown.folder / FILE
    try:
        drawn = pictures.draw_run(shown)
        compared = pictures.draw_comparison([shown, *others]) if others else None
        text = page.page(shown, drawn, others, compared)
        write_whole(path, [text.encode("utf-8", "replace")])
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"nothing can be drawn of what is in {shown.folder}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be written: {error.strerror}") from error
    return path


command = settings_command(
    ReportSettings,
    run,
    about="Write one page (report.html) and the pictures of a run that has finished into its folder.\n\n"
    "The page needs no other file and no network: curves, staleness, contributions, what was refused, what "
    "happened when, settings and versions. The folder is that of a `fluffle demo`. For any other federation, "
    "--from-broker makes one from the records that the stream still holds; why messages were refused is in "
    "it if this user may look into F.rejected.",
)
