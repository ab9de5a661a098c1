"""`fluffle simulate --sweep`: plays a grid of settings with several seeds, and writes what came out of it."""

import math
import os
import re
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Column
from rich.text import Text

from fluffle.consoles import table_console
from fluffle.errors import FluffleError
from fluffle_aggregator.goal import parse_target
from fluffle_cli.simulate.grid import Grid, grid_of
from fluffle_cli.simulate.page import write_page
from fluffle_cli.simulate.pool import Ended, PlannedRun, Progress, play_all
from fluffle_cli.simulate.results import Failure, SweepResults
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.verdict import verdict
from fluffle_cli.watching.terminal import plain_table
from fluffle_cli.words import count, number

EXIT_FAILED: Final = 1
MOST_NAME: Final = 80
# Where there is no terminal, no cell of the table is shortened.
WIDE: Final = 400
# A result of a combination, and its failures.
Ends = list[Ended]


def run_sweep(settings: SimulateSettings, console: Console) -> None:
    """Play all runs of the sweep; after Ctrl-C what has ended is written, and KeyboardInterrupt raised."""
    grid = grid_of(settings)
    folder = settings.make_folder()
    runs = planned(grid, folder)
    processes = min(len(os.sched_getaffinity(0)), len(runs))
    for strategy, names in grid.left_out.items():
        _say(console, f"{strategy} is played without {', '.join(names)}, which it does not have")
    what = f"{count(len(grid.combinations), 'combination')} with {count(len(grid.seeds), 'seed')} each"
    _say(console, f"{count(len(runs), 'run')}: {what}, {processes} at a time")
    _say(console, f"The results lie in {folder}; Ctrl-C ends the sweep and keeps the runs that have ended")
    ended: Ends = []
    try:
        _follow(settings, runs, processes, console, ended)
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            _remove_unfinished(runs, ended)
            found = _results(settings, grid, ended)
            _show(settings, found, ended, folder, console)
        finally:
            signal.signal(signal.SIGINT, before)
    if not found.results:
        raise FluffleError(f"no run came to its end. The first failed so: {found.failures[0].error}")
    if found.failures:
        sys.exit(EXIT_FAILED)


def planned(grid: Grid, folder: Path) -> list[PlannedRun]:
    """Return the runs of a grid, seed by seed, so that a sweep that is stopped has compared equally many."""
    width = len(str(len(grid.combinations)))
    names = [
        f"{place:0{width}d}-{_file_name(each.label)}" for place, each in enumerate(grid.combinations, start=1)
    ]
    return [
        PlannedRun(
            place, each.settings.model_copy(update={"seed": seed}), folder / names[place] / f"seed-{seed}"
        )
        for seed in grid.seeds
        for place, each in enumerate(grid.combinations)
    ]


def _follow(
    settings: SimulateSettings, runs: Sequence[PlannedRun], processes: int, console: Console, ended: Ends
) -> None:
    # The line of a run may be longer than the terminal is wide: it gets what the bar leaves.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bar = BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn()
    columns = *bar, TextColumn("{task.description}", table_column=rest)
    with (
        ProgressBar(*columns, console=console, transient=True, expand=True) as shown,
        closing(play_all(runs, processes=processes, verbose=settings.verbose)) as told,
    ):
        whole = shown.add_task(f"0 of {len(runs)}", total=len(runs))
        lines: dict[Path, TaskID] = {}
        shares: dict[Path, float] = {}
        for each in told:
            name, folder = _name(each.run), each.run.folder
            if isinstance(each, Progress):
                if folder not in lines:
                    lines[folder] = shown.add_task("", total=1.0)
                shares[folder] = each.share
                shown.update(lines[folder], completed=each.share, description=f"{name}: {each.says.strip()}")
            else:
                ended.append(each)
                shares.pop(folder, None)
                if folder in lines:
                    shown.remove_task(lines.pop(folder))
                if each.error:
                    _say(console, f"{name} has failed: {each.error}", "yellow")
                elif not console.is_terminal:
                    _say(console, f"{len(ended)} of {len(runs)}: {name}, {_outcome(each, settings)}")
            completed = len(ended) + sum(shares.values())
            shown.update(whole, completed=completed, description=f"{len(ended)} of {len(runs)}")


def _outcome(each: Ended, settings: SimulateSettings) -> str:
    if each.result is None:
        return each.error
    reached = each.result.target_s
    held = (
        f"held from {reached:.1f} s" if math.isfinite(reached) else f"not held in {each.result.seconds:.1f} s"
    )
    start = f"{held}, " if settings.target else ""
    final = "unknown" if math.isnan(each.result.final) else number(each.result.final)
    return f"{start}final {each.result.metric} {final} (took {each.took_s:.0f} s)"


def _remove_unfinished(runs: Sequence[PlannedRun], ended: Ends) -> None:
    """Remove the folders of runs that were stopped: what is in them is no result."""
    for folder in {each.folder for each in runs} - {each.run.folder for each in ended}:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _results(settings: SimulateSettings, grid: Grid, ended: Ends) -> SweepResults:
    by_place = {
        place: sorted(
            (each.result for each in ended if each.result and each.run.place == place),
            key=lambda one: one.seed,
        )
        for place in range(len(grid.combinations))
    }
    failures = [Failure(each.run.place, each.run.settings.seed, each.error) for each in ended if each.error]
    results = {place: results for place, results in by_place.items() if results}
    target = str(parse_target(settings.target)) if settings.target else ""
    return SweepResults(grid, target, settings.held_seconds, settings.max_seconds, results, failures)


def _show(
    settings: SimulateSettings, found: SweepResults, ended: Ends, folder: Path, console: Console
) -> None:
    found.write(folder)
    sentences = verdict(found) if settings.recommend else []
    if found.results:
        heads, rows = found.table()
        console.print()
        table = plain_table(heads, rows, right=heads[1:])
        for column in table.columns:
            # On a narrow terminal a cell takes two lines: none of it is left out.
            column.no_wrap = False
        table_console(WIDE).print(table)
        console.print()
        page = write_page(found, sentences, settings, folder)
    for line in _complaints(ended):
        _say(console, line, "yellow")
    for each in found.failures:
        label = found.grid.combinations[each.place].label
        _say(console, f"Failed: {label}, seed {each.seed}: {each.error}", "yellow")
    if found.left:
        _say(console, f"{count(found.left, 'run')} of {found.grid.size:,} did not end and count for nothing")
    for sentence in sentences:
        _say(console, sentence)
    if found.results:
        _say(console, f"The picture is {page}")


def _complaints(ended: Ends) -> Iterator[str]:
    """Yield what was not as it should be in some runs: once, where sentences differ in numbers alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for each in ended:
        for line in dict.fromkeys(each.complaints):
            alike[re.sub(r"[\d.,]+", "#", line)].append(f"{_name(each.run)}: {' '.join(line.split())}")
    for lines in alike.values():
        others = f" ({count(len(lines) - 1, 'other run')} likewise)" if len(lines) > 1 else ""
        yield f"{lines[0]}{others}"


def _name(run: PlannedRun) -> str:
    return f"{run.folder.parent.name}, seed {run.settings.seed}"


def _file_name(label: str) -> str:
    return re.sub(r"[^\w=.,:+-]", "_", label.replace(" ", ","), flags=re.ASCII)[:MOST_NAME]


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)
