"""What came out of a demo: `summary.json` for programs, tables and a way to go on for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fluffle_aggregator.goal import Target, parse_target
from fluffle_cli.plain_json import as_text
from fluffle_cli.report.metrics import VersionRow, seconds_to_target
from fluffle_cli.view import bar
from fluffle_cli.workers import WorkerFacts

FILE = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One federation: how it ended and how good its final model is.

    `seconds_to_target` counts from the start of the first round to the commit of the first version from
    which on the target held; None when it did not, or when there is no target. `final` are the final model's
    metrics, measured after the end; empty when that failed. `began_at` is when the first round began, in Unix
    time, 0 where nobody knows.
    """

    strategy: str
    folder: str
    finished: str
    seconds: float
    seconds_to_target: float | None
    versions: int
    updates: int
    rejected: int
    final: Mapping[str, float]
    workers: Mapping[str, WorkerFacts]
    began_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole demo, or one federation that was none.

    `central` are the metrics of the same architecture, trained in one place. Where there is no `target`,
    `metric_shown` says what the curves are of. `settings` and `versions` (of Fluffle, Python, RabbitMQ ...)
    are for people.
    """

    task: str
    seed: int | None
    target: str
    delays_s: Sequence[float]
    central: Mapping[str, float]
    runs: Sequence[RunSummary]
    metric_shown: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def goal(self) -> Target | None:
        """The target, read; None when there is none. ConfigError when it cannot be read."""
        return parse_target(self.target) if self.target else None

    @property
    def metric(self) -> str:
        """The target's metric, or the one that is shown without a target."""
        return self.goal.metric if self.goal else self.metric_shown

    @property
    def ratio(self) -> float | None:
        """How many times as long the first federation took to the target as the second; None if unknown."""
        times = [run.seconds_to_target for run in self.runs]
        if len(times) != 2 or not times[0] or not times[1]:
            return None
        return times[0] / times[1]

    @property
    def verdict(self) -> str:
        """Say what the comparison of two federations shows; empty for one."""
        if len(self.runs) != 2:
            return ""
        first, second = self.runs
        if self.ratio is None:
            return f"{second.strategy} and synchronous {first.strategy}"
        if self.ratio >= 1:
            times = f"{self.ratio:.1f} times as fast as"
            return f"{second.strategy} reaches {self.target} {times} synchronous {first.strategy}"
        times = f"{1 / self.ratio:.1f} times as fast as"
        return f"synchronous {first.strategy} reaches {self.target} {times} {second.strategy}"


_SUMMARY = TypeAdapter(Summary)


def run_summary(
    *,
    strategy: str,
    folder: str,
    rows: Sequence[VersionRow],
    target: Target | None,
    final: Mapping[str, float],
    began_at: float = 0.0,
) -> RunSummary:
    """Sum up a federation from its versions, of which there is at least one."""
    last = rows[-1]
    return RunSummary(
        strategy=strategy,
        folder=folder,
        finished=last.finished,
        seconds=last.seconds,
        began_at=began_at,
        seconds_to_target=seconds_to_target(rows, target) if target else None,
        versions=last.version,
        updates=last.updates,
        rejected=last.rejected,
        final=final,
        workers=last.workers,
    )


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    text = as_text(asdict(summary) | {"ratio": summary.ratio}, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_summary(folder: Path) -> Summary:
    """Read a `summary.json`; ValueError that says what is wrong with it."""
    return _SUMMARY.validate_json((folder / FILE).read_text(encoding="utf-8"))


def print_summary(console: Console, summary: Summary) -> None:
    """Print the results and what each worker gave."""
    console.print()
    console.print(_results(summary))
    for run in summary.runs:
        console.print()
        console.print(_workers(run))
    if summary.ratio is not None:
        console.print()
        console.print(Text(f"{summary.verdict}.", "bold green"), soft_wrap=True)
    missed = [run for run in summary.runs if run.seconds_to_target is None]
    for run in missed:
        said = f"{run.strategy} ended without reaching {summary.target}: {run.finished}"
        console.print(Text(said, "yellow"), soft_wrap=True)


def _results(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(summary.task)
    for run in summary.runs:
        table.add_column(run.strategy, justify="right")
    table.add_column("trained in one place", justify="right")
    central = summary.central.get(summary.metric)
    shown_central = "unknown" if central is None else f"{central:.4f}"
    finals = [run.final.get(summary.metric) for run in summary.runs]
    shown_finals = ["unknown" if final is None else f"{final:.4f}" for final in finals]
    table.add_row(f"{summary.metric} of the final model", *shown_finals, shown_central)
    times = [run.seconds_to_target for run in summary.runs]
    reached = ["not reached" if time is None else f"{time:.1f} s" for time in times]
    table.add_row(f"{summary.target} held from", *reached)
    table.add_row("training took", *(f"{run.seconds:.1f} s" for run in summary.runs))
    table.add_row("versions", *(str(run.versions) for run in summary.runs))
    table.add_row("updates", *(str(run.updates) for run in summary.runs))
    table.add_row("refused", *(str(run.rejected) for run in summary.runs))
    return table


def _workers(run: RunSummary) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(run.strategy)
    table.add_column("updates", justify="right")
    table.add_column("mean staleness", justify="right")
    table.add_column("share of weight")
    for name, totals in run.workers.items():
        share = Text(bar(totals.weight_share), "magenta")
        table.add_row(name, str(totals.updates), f"{totals.mean_staleness:.1f}", share)
    return table
