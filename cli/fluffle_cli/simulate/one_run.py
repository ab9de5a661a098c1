"""One simulated run: play it, write its folder, and tell what came out of it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fluffle.data_source import TaskOfTables
from fluffle.errors import ConfigError
from fluffle.record import ModelVersion
from fluffle.sites import WORST, site_metric_in
from fluffle.task import DATA_SETS, load_task
from fluffle_cli.held import held_from
from fluffle_cli.report.command import write_report
from fluffle_cli.report.run import (
    EVENTS,
    METRICS,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    make_empty_folder,
    versions_in_use,
    write_summary,
)
from fluffle_cli.simulate.federation import Hopeless, SimulatedFederation
from fluffle_cli.simulate.memory import Memory
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.view import Happening, Version, metric_to_show
from fluffle_cli.words import count, in_a_row, number
from fluffle_worker.data.table import with_data_table

NEVER: Final = math.inf
OnVersion = Callable[[Version], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came out of one run.

    `seconds` are virtual, and `target_s` those after which the target began to hold; `target_updates` and
    `target_bytes` are what had been sent by then. These three are infinite when it did not hold while the run
    lasted, and without a target. Bytes are those of the updates. `final` is the last evaluation of the metric
    that is shown, and `worst` the worst of the same metric by site or class; NaN where nothing is known.
    """

    seed: int
    folder: str
    seconds: float
    updates: int
    versions: int
    sent_bytes: int
    metric: str
    target_s: float = NEVER
    target_updates: float = NEVER
    target_bytes: float = NEVER
    final: float = math.nan
    worst: float = math.nan
    mean_staleness: float = math.nan
    finished: str = ""


@dataclass(frozen=True, slots=True)
class Played:
    """A run, what came out of it, and a sentence for each thing that was not as it should be.

    `hopeless` says why nothing more would ever have come of it, and is then the first of these sentences; it
    is empty for a run that came to its end.
    """

    run: Run
    result: RunResult
    complaints: Sequence[str]
    hopeless: str = ""


def play(
    settings: SimulateSettings,
    folder: Path,
    on_version: OnVersion,
    memory: Memory | None = None,
    make: type[SimulatedFederation] = SimulatedFederation,
) -> Played:
    """Play one federation, made by `make`, into an empty folder; `on_version` hears of each version.

    `memory` is what it may take, by default all that is available.

    Whatever happens, such as Ctrl-C, what there is of the run is written to the folder.
    """
    make_empty_folder(folder)
    versions: list[Version] = []
    sent: dict[int, int] = {}

    def note(version: ModelVersion) -> None:
        # Only those of the last version are read; with many clients they take far more room than all else.
        if versions:
            before = versions[-1]
            privacy = before.privacy and replace(before.privacy, participations={})
            versions[-1] = replace(before, contributors={}, sites={}, privacy=privacy)
        versions.append(Version.of(version))
        sent[version.version] = federation.sent_bytes
        on_version(versions[-1])

    task = load_task(settings.task)
    if isinstance(task, TaskOfTables):
        raise ConfigError(
            f"the task {settings.task} reads the tables of real sites, and a simulation deals out a data "
            f"set: simulate {', '.join(DATA_SETS)} or a task of your own"
        )
    federation = make(settings, with_data_table(task, settings.config), note, memory)
    hopeless = ""
    try:
        federation.run()
    except Hopeless as error:
        hopeless = str(error)
    finally:
        append_lines(folder / METRICS, versions)
        append_lines(folder / EVENTS, federation.leader.happened)
        run = _described(settings, folder, versions, federation.leader.happened)
        if versions and versions[-1].updates:
            write_summary(run)
            write_report(run, [])
    complaints = [*_what_went_wrong(federation, settings, versions)]
    if hopeless:
        complaints.insert(0, hopeless)
    return Played(run, result_of(run, settings, sent), complaints, hopeless)


def result_of(run: Run, settings: SimulateSettings, sent: Mapping[int, int]) -> RunResult:
    """Sum up a run; `sent` are the bytes of all updates that had come when each version was made."""
    [federation] = run.federations
    first, last = federation.versions[0], federation.last
    metric = run.metric
    # From the start of the simulation, so that the time that the first update takes to arrive counts.
    at = {each.version: each.committed_at - first.committed_at for each in federation.versions}
    both = [found for each in federation.versions for found in (each.evaluation, each.site_evaluation)]
    found = [each for each in both if each and metric in each.metrics]
    values = {each.version: each.metrics[metric] for each in sorted(found, key=lambda each: each.version)}
    curve = {version: (at[version], value) for version, value in values.items() if version in at}
    seconds = at[last.version]
    target_s, reached = NEVER, None
    if run.goal:
        held = held_from(curve.values(), run.goal, hold_s=settings.held_seconds, until_s=seconds)
        reached = next((version for version, (when, _) in curve.items() if when == held), None)
        target_s = NEVER if held is None else held
    made = {each.version: each for each in federation.versions}
    late = [one.staleness for each in federation.versions for one in each.folded]
    of_classes = [value for name, value in _newest_metrics(last).items() if name.startswith(f"{metric}/")]
    falls = last.best_by.endswith(":min")
    worst = (max if falls else min)(of_classes) if of_classes else math.nan
    if last.site_evaluation:
        worst = last.site_evaluation.metrics.get(f"{WORST}{site_metric_in(metric)}", worst)
    return RunResult(
        seed=settings.seed,
        folder=str(run.folder),
        seconds=seconds,
        updates=last.updates,
        versions=last.version,
        sent_bytes=sent[last.version],
        metric=metric,
        target_s=target_s,
        target_updates=NEVER if reached is None else made[reached].updates,
        target_bytes=NEVER if reached is None else sent[reached],
        final=_newest_metrics(last).get(metric, math.nan),
        worst=worst,
        mean_staleness=sum(late) / len(late) if late else math.nan,
        finished=last.finished,
    )


def line_of(version: Version) -> str:
    """Return how far a run is, for a person."""
    found = _newest_metrics(version)
    metrics = ", ".join(f"{name} {number(value)}" for name, value in list(found.items())[:3])
    return f"{version.elapsed_s:8.1f} s   version {version.version}   {version.updates} updates   {metrics}"


def share_done(version: Version, settings: SimulateSettings) -> float:
    """Return which part of a run is over by its limits, from 0 to 1; a target may end it sooner."""
    limits = (
        (version.training_s, settings.max_seconds),
        (version.updates, settings.max_updates),
        (version.version, settings.max_versions),
    )
    return min(1.0, max((now / end for now, end in limits if end), default=0.0))


def _newest_metrics(version: Version) -> Mapping[str, float]:
    return version.deciding_evaluation.metrics if version.deciding_evaluation else {}


def _what_went_wrong(
    federation: SimulatedFederation, settings: SimulateSettings, versions: Sequence[Version]
) -> Iterator[str]:
    """Yield a line for each thing that was not as it should be; all messages count, even after the end."""
    leader, strategy = federation.leader, settings.make_strategy()
    goal, evaluated = settings.make_goal(), _newest_metrics(versions[-1])
    if goal.target and evaluated and goal.target.metric not in evaluated:
        yield f"no evaluation has the target's {goal.target.metric}: there is {in_a_row(sorted(evaluated))}"
    if strategy.one_update_per_version:
        short = [each for each in versions[:-1] if 0 < len(each.folded) < strategy.buffer_size]
        if short := [each for each in short if not (each.closing or each.finished)]:
            yield (
                f"{len(short)} of {versions[-1].version} rounds ended without all workers: they took longer "
                f"than --buffer-timeout ({settings.buffer_timeout:g} s)"
            )
    for reason, refused in leader.refused.most_common():
        yield f"{f'refused: {reason}':28} {refused}"
    if leader.refused.total() > len(leader.happened):
        yield f"{EVENTS} has only the first {len(leader.happened)} of these refusals"
    for because, rounds in federation.unusable.most_common():
        yield f"{'rounds without an update':28} {rounds}: {because}"
    counted = {
        "rounds aborted as too stale": federation.aborted,
        "rounds lost in crashes": federation.crashes,
        "updates delivered twice": federation.duplicates,
    }
    yield from (f"{what:28} {number}" for what, number in counted.items() if number)
    for warning, times in leader.warnings.most_common():
        yield f"the leader warned {count(times, 'time')}: {warning}"


def _described(
    settings: SimulateSettings, folder: Path, versions: list[Version], happened: Sequence[Happening]
) -> Run:
    about = About(
        task=settings.task,
        seed=settings.seed,
        target=settings.target or "",
        runs=[AboutFederation(strategy=settings.strategy, folder=".", held_seconds=settings.held_seconds)],
        metric_shown=versions[-1].best_by.rpartition(":")[0]
        or metric_to_show(_newest_metrics(versions[-1]))
        or "accuracy",
        settings=settings.shown,
        versions=versions_in_use("none: simulated"),
    )
    federation = FederationRun(about=about.runs[0], versions=versions, happened=happened)
    return Run(folder=folder, about=about, federations=[federation])
