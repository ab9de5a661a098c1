"""`fluffle simulate`: play a federation on a virtual clock, and write its folder and its report."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluffle.command_line import settings_command
from fluffle.consoles import PlainConsole
from fluffle.record import ModelVersion
from fluffle.settings import ServiceSettings, SharedSettings
from fluffle.task import load_task
from fluffle_cli.report.command import write_report
from fluffle_cli.report.run import (
    EVENTS,
    METRICS,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    versions_in_use,
    write_summary,
)
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.view import Happening, Version
from fluffle_cli.words import number

# What an aggregator needs for its broker and its process, and a simulation has not.
MEANINGLESS: Final = frozenset(ServiceSettings.model_fields) - {"verbose", "config", "log_format"}


def run(settings: SimulateSettings) -> None:
    """Play a federation on a virtual clock: minutes of training of slow devices take seconds.

    The leader, its limits, the strategies and the messages are those of `fluffle aggregator`, and each worker
    really trains. Only RabbitMQ is played by a queue in memory, and the clock is virtual. The same settings
    give the same bits.

    Example: `fluffle simulate --clients 16 --round-seconds lognormal:1:1 --target 0.95 --max-seconds 600`
    """
    settings.check()
    folder = settings.make_folder()
    console = PlainConsole(highlight=False)
    versions: list[Version] = []
    began = time.monotonic()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("building the model, and loading the data of every site")

        def note(version: ModelVersion) -> None:
            versions.append(Version.of(version))
            progress.update(shown, description=_line(versions[-1]))

        federation = SimulatedFederation(settings, load_task(settings.task), note)
        try:
            federation.run()
        finally:
            # After Ctrl-C too: what is done is kept.
            append_lines(folder / METRICS, versions)
            append_lines(folder / EVENTS, federation.leader.happened)
            if versions and versions[-1].updates:
                _write_results(console, _results(settings, folder, versions, federation.leader.happened))
            for line in _what_went_wrong(federation):
                console.print(line, markup=False)
    took_s = time.monotonic() - began
    console.print(f"{federation.seconds:.1f} virtual seconds took {took_s:.1f} s", markup=False)


def _write_results(console: Console, run: Run) -> None:
    write_summary(run)
    report = write_report(run, [])
    for what, found in run.federations[0].results(run.metric, run.goal).items():
        console.print(f"{what:28} {found}", markup=False)
    console.print(f"The report is {report}", markup=False)


def _what_went_wrong(federation: SimulatedFederation) -> Iterator[str]:
    """Yield a line for each thing that was not as it should be; all messages count, even after the end."""
    leader = federation.leader
    for reason, count in leader.refused.most_common():
        yield f"{f'refused: {reason}':28} {count}"
    if leader.refused.total() > len(leader.happened):
        yield f"{EVENTS} has only the first {len(leader.happened)} of these refusals"
    if federation.crashes:
        yield f"{'rounds lost in crashes':28} {federation.crashes}"
    if federation.duplicates:
        yield f"{'updates delivered twice':28} {federation.duplicates}"
    for warning, count in leader.warnings.most_common():
        yield f"the leader warned {count} times: {warning}"


def _line(version: Version) -> str:
    found = version.evaluation.metrics if version.evaluation else {}
    metrics = ", ".join(f"{name} {number(value)}" for name, value in list(found.items())[:3])
    return f"{version.elapsed_s:8.1f} s   version {version.version}   {version.updates} updates   {metrics}"


def _results(
    settings: SimulateSettings, folder: Path, versions: list[Version], happened: Sequence[Happening]
) -> Run:
    given = settings.model_dump(include=settings.model_fields_set, exclude=set(SharedSettings.model_fields))
    about = About(
        task=settings.task,
        seed=settings.seed,
        target=settings.target or "",
        runs=[AboutFederation(strategy=settings.strategy, folder=".")],
        metric_shown=versions[-1].best_by.partition(":")[0] or "accuracy",
        settings={name.replace("_", "-"): str(value) for name, value in given.items()},
        versions=versions_in_use("none: simulated"),
    )
    federation = FederationRun(about=about.runs[0], versions=versions, happened=happened)
    return Run(folder=folder, about=about, federations=[federation])


command = settings_command(SimulateSettings, run, without=MEANINGLESS)
