"""Draws all pictures of a run into its folder: the only module of the report that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluffle_cli.report.plots import Course, plot_quality, plot_staleness
from fluffle_cli.report.run_folder import FederationRun, Run
from fluffle_cli.report.summary import Summary
from fluffle_cli.report.time_line import plot_contributions, plot_time_line


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was drawn, and what it shows, for whoever cannot see it."""

    path: Path
    shows: str


def draw_run(run: Run) -> list[list[Picture]]:
    """Draw the pictures of each federation of a run, and return them."""
    drawn = [_draw_federation(run.summary, each) for each in run.federations]
    if len(run.federations) > 1:
        plot_quality(
            run.folder / "compare.png",
            [Course(name=each.about.strategy, rows=each.rows) for each in run.federations],
            title=f"{run.summary.verdict}\n{run.summary.task}{_speeds(run.summary)}",
            metric=run.summary.metric,
            target=run.summary.goal,
            central=run.summary.central.get(run.summary.metric),
        )
    return drawn


def draw_comparison(runs: Sequence[Run]) -> Picture:
    """Lay the curves of several runs over one another; the first says which metric, and gets the picture."""
    first = runs[0]
    path = first.folder / "compared.png"
    metric = first.summary.metric
    names = [f"{each.about.strategy} in {run.folder.name}" for run in runs for each in run.federations]
    courses = [
        Course(name=name, rows=each.rows)
        for name, each in zip(names, (each for run in runs for each in run.federations), strict=True)
    ]
    plot_quality(
        path,
        courses,
        title=f"{metric} of {len(courses)} federations",
        metric=metric,
        target=first.summary.goal,
        central=None,
    )
    return Picture(path, f"{metric} on held-out data over seconds: {', '.join(names)}")


def _draw_federation(summary: Summary, run: FederationRun) -> list[Picture]:
    about, title = run.about, f"{summary.task} with {run.about.strategy}{_speeds(summary)}"
    quality, staleness, contributions, time_line = (
        run.folder / name for name in ("accuracy.png", "staleness.png", "contributions.png", "timeline.png")
    )
    course = Course(name=about.strategy, rows=run.rows)
    plot_quality(
        quality,
        [course],
        title=title,
        metric=summary.metric,
        target=summary.goal,
        central=summary.central.get(summary.metric),
    )
    plot_staleness(staleness, course, title=f"Staleness: {title}")
    plot_contributions(contributions, about.workers, title=f"Contributions: {title}")
    plot_time_line(
        time_line, run.rows, run.happened, began_at=about.began_at, title=f"What happened when: {title}"
    )
    return [
        Picture(quality, f"{summary.metric} on held-out data over seconds"),
        Picture(staleness, "How many updates came how late, by worker, and when"),
        Picture(contributions, "Updates applied and refused, and share of the weight, by worker"),
        Picture(time_line, "Updates and refusals as they add up, who was there, and when the lead changed"),
    ]


def _speeds(summary: Summary) -> str:
    if not summary.delays_s:
        return ""
    fastest, slowest = summary.delays_s[0], summary.delays_s[-1]
    return f", {len(summary.delays_s)} workers that idle {fastest:g} to {slowest:g} s a round"
