"""`fluffle data check`: a report on a site's data in the terminal and as a page, before anything is sent."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

import typer
from pydantic import Field

from fluffle.command_line import new_app, settings_command
from fluffle.consoles import print_table
from fluffle.data_source import reading_from
from fluffle.errors import ConfigError, TaskError
from fluffle.survey.result import SurveyResult
from fluffle.task import Site, load_task
from fluffle.whole_file import write_whole
from fluffle_cli.data_check.drift import Drift, drift_of, drift_rows
from fluffle_cli.data_check.looking import DataCheck, look_at
from fluffle_cli.data_check.page import MOST_CLASSES, page
from fluffle_cli.survey.as_json import result_in
from fluffle_cli.words import number
from fluffle_worker.data.table import with_data_table
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.keras_task.surveyed import statistics_of_site
from fluffle_worker.settings import SiteSettings

MOST_COLUMNS: Final = 20
EXIT_SENSELESS: Final = 1
app = new_app("Look at this site's data before anything is sent.")


class DataCheckSettings(SiteSettings):
    """Flags of `fluffle data check`, keys of the table [data_check]."""

    part: ClassVar[str] = "data_check"

    out: Path = Field(Path("data-check.html"), description="File for the report as a page with pictures.")
    survey_file: Path | None = Field(
        None,
        description="File of `fluffle survey --json`: shows how far this site's data is from that of all "
        "sites.",
    )


def check(settings: DataCheckSettings) -> None:
    """Show the report and write the page; exit with 1 when training would be senseless or refused."""
    task, site = reading_from(load_task(settings.task), settings.source("train")), settings.make_site()
    task = with_data_table(task, settings.config)
    if not isinstance(task, KerasTask):
        raise ConfigError(f"only the data of a KerasTask can be looked at, and {settings.task} is none")
    survey = None if settings.survey_file is None else read_survey(settings.survey_file)
    site = replace(site, statistics=survey)
    task = task.reading_once(site)
    found = look_at(task.raw_rows(site), task.data_steps, task=settings.task, site=site)
    if not found.reason:
        found = replace(found, reason=_refusal(task, site))
    if survey is not None and not found.reason:
        found = replace(found, drift=_drift(task, site, survey, len(found.profile.classes)))
    _show(found)
    write_whole(settings.out, [page(found).encode("utf-8", "replace")])
    typer.echo(f"\nthe report with pictures is {settings.out}; nothing was sent")
    if found.reason:
        typer.echo(f"training would be senseless or refused here: {found.reason}", err=True)
        raise typer.Exit(EXIT_SENSELESS)


def _show(found: DataCheck) -> None:
    profile = found.profile
    typer.echo(f"{found.task}, {found.site}: {profile.rows:,} rows of {profile.row_shape or 'no'} inputs")
    if profile.duplicates is not None:
        typer.echo(f"{profile.duplicates:,} rows are equal to an earlier one")
    typer.echo(f"{profile.unlabelled:,} rows have no label, {profile.incomplete:,} have missing values")
    typer.echo(f"labels: {found.suspicious}\n")
    _show_columns(found)
    whose = "the steps of the task" if found.has_own_steps else "the task has no data steps; the defaults"
    did = "would do this:" if found.reports else "were not taken" if found.reason else "would change nothing"
    typer.echo(f"\n{whose} {did}")
    if found.reports:
        print_table(
            ["step", "rows before", "rows after", "what it does"],
            [[each.step, f"{each.before:,}", f"{each.after:,}", each.detail] for each in found.reports],
        )
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")
    if found.drift is not None:
        typer.echo(f"\n{found.drift.says}")
        print_table(["", "total variation distance"], drift_rows(found.drift)[:MOST_COLUMNS])
    if profile.classes:
        after = next((each.classes_after for each in reversed(found.reports)), profile.classes)
        typer.echo("")
        print_table(
            ["class", "rows before", "rows after"],
            [
                [str(at), f"{count:,}", f"{after[at]:,}" if at < len(after) else "0"]
                for at, count in enumerate(profile.classes[:MOST_CLASSES])
            ],
        )
        if (left := len(profile.classes) - MOST_CLASSES) > 0:
            typer.echo(f"{left:,} more classes, up to {len(profile.classes) - 1}, are not shown")


def _refusal(task: KerasTask, site: Site) -> str:
    """Return why a worker would refuse to train with this data; empty where it would not."""
    try:
        task.require_trainable(site)
    except TaskError as error:
        return str(error)
    return ""


def _drift(task: KerasTask, site: Site, survey: SurveyResult, own_classes: int) -> Drift:
    # A class that no other site has is drift too.
    classes = 0 if survey.class_counts is None else max(len(survey.class_counts), own_classes)
    own = statistics_of_site(lambda: task.train_data(site), task.data_steps, site=site, classes=classes)
    return drift_of(own, survey)


def read_survey(path: Path) -> SurveyResult:
    """Read the result of a survey; ConfigError when the file holds none."""
    try:
        return result_in(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--survey-file {path} cannot be read: {error}") from error


def _show_columns(found: DataCheck) -> None:
    if not found.profile.columns:
        if found.profile.rows:
            typer.echo("columns: not looked at: this needs one array or data frame of numbers")
        return
    unusual = [each for each in found.profile.columns if each.findings or each.is_constant]
    if not unusual:
        typer.echo(f"nothing is unusual in {len(found.profile.columns):,} columns")
        return
    worst = sorted(unusual, key=lambda each: -each.findings)[:MOST_COLUMNS]
    print_table(
        ["column", "missing", "infinite", "outliers", "lowest", "mean", "highest", ""],
        [
            [
                each.name,
                *(f"{count:,}" for count in (each.missing, each.infinite, each.outliers)),
                *map(number, (each.lowest, each.mean, each.highest)),
                "never changes" if each.is_constant else "",
            ]
            for each in worst
        ],
    )
    typer.echo(f"{len(unusual):,} of {len(found.profile.columns):,} columns have something unusual")


app.command("check")(
    settings_command(
        DataCheckSettings,
        check,
        about="Show what this site's training data is like, and what its data steps would do.\n\nRows, "
        "classes, missing values, outliers (5 median absolute deviations from the median), duplicates and "
        "labels that are probably wrong, in the terminal and as one page with pictures. Nothing is sent, "
        "and no RabbitMQ is needed. With --survey-file, the drift of each column and of the classes "
        "against the whole federation is shown too. The exit code is 1 when training would be senseless "
        "(no rows, one class, or nothing but missing values), and when a worker would refuse a data step.",
        without=(
            *("federation", "broker_url", "broker_password_file", "heartbeat_s", "connect_timeout_s"),
            *("broker_ca_file", "broker_cert_file", "broker_key_file", "log_format", "max_message_mib"),
        ),
    )
)
