"""`fluffle survey`: the statistics of all sites' data."""

from pathlib import Path
from typing import ClassVar

import typer
from pydantic import Field

from fluffle.command_line import settings_command
from fluffle.connection import found_federation
from fluffle.consoles import print_table
from fluffle.errors import ConfigError, TopologyMissing
from fluffle.model_stream import record_at_hand
from fluffle.survey.messages import Survey
from fluffle.survey.result import SurveyResult
from fluffle.topology import topology_of
from fluffle.whole_file import write_whole
from fluffle_cli.plain_json import as_text
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.survey.as_json import as_json
from fluffle_cli.survey.page import page
from fluffle_cli.survey.terminal import COLUMN_HEADS, class_rows, column_row, progress_in_words


class SurveyCommandSettings(QuerySettings):
    """Flags of `fluffle survey`, keys of the table [survey]."""

    part: ClassVar[str] = "survey"

    as_json: bool = Field(
        False,
        description="Print one JSON object, for `fluffle data check --survey-file` and for programs.",
        json_schema_extra={"flag": "--json"},
    )
    out: Path | None = Field(
        None, description="File for the survey as a page with pictures, such as survey.html."
    )


def run(settings: SurveyCommandSettings) -> None:
    """Show the survey of a federation."""
    topology = topology_of(settings.federation)
    with found_federation(settings, topology, name=f"{settings.federation}/survey") as broker:
        newest = record_at_hand(broker, topology)
    if newest is None:
        raise TopologyMissing(
            f"the federation {settings.federation!r} has no version yet: start its aggregator"
        )
    if newest.survey is None:
        raise ConfigError(
            f"the federation {settings.federation!r} has no survey: a new one begins with a survey when "
            "its aggregator is started with --survey WORKERS"
        )
    result = newest.survey.result
    if settings.out is not None and result is not None:
        write_whole(settings.out, [page(settings.federation, result).encode("utf-8", "replace")])
    if settings.as_json:
        typer.echo(
            as_text({"federation": settings.federation, "version": newest.version, **as_json(newest.survey)})
        )
        return
    _show(newest.survey, result)
    if settings.out is not None and result is not None:
        typer.echo(f"\nthe survey with pictures is {settings.out}")


def _show(survey: Survey, result: SurveyResult | None) -> None:
    if result is None:
        typer.echo(progress_in_words(survey))
        return
    typer.echo(
        f"{result.rows:,} rows of {result.sites:,} sites; what stands for fewer than {result.min_count:,} "
        "rows is not told (few)\n"
    )
    print_table(COLUMN_HEADS, map(column_row, result.columns), width=120)
    if result.class_counts is not None:
        typer.echo("")
        print_table(["class", "rows", "share"], class_rows(result))


command = settings_command(
    SurveyCommandSettings,
    run,
    about="Show the survey of a federation: count, missing values, mean, standard deviation and quantiles "
    "of each column of all sites' data, and the rows of each class.\n\nIt reads the newest record, as any "
    "user of the federation may. While the survey is open it says which workers have answered.",
)
