"""The demo's pictures: quality over seconds, staleness, and two strategies beside each other.

The demo runs this as a child, `python -m fluffle_cli.demo.plots FOLDER`, which draws from the folder's files
alone: so it draws them again, too, after a change here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle_aggregator.goal import Target, parse_target
from fluffle_cli.demo.metrics import VersionRow, curve, read_rows, seconds_to_target
from fluffle_cli.demo.summary import Summary, read_summary

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
SECONDS = "seconds since the first round began"
DOTS_PER_INCH = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One federation in a picture: its strategy's name and its versions."""

    name: str
    rows: Sequence[VersionRow]


def draw_all(folder: Path) -> None:
    """Draw every picture of a run into its folder."""
    summary = read_summary(folder)
    target, central = parse_target(summary.target), summary.central.get(summary.metric)
    courses = []
    for run in summary.runs:
        course = Course(name=run.strategy, rows=list(read_rows(folder / run.folder / "metrics.jsonl")))
        courses.append(course)
        title = f"{summary.task} with {run.strategy}, {_speeds(summary)}"
        path = folder / run.folder
        plot_quality(path / "accuracy.png", [course], title=title, target=target, central=central)
        plot_staleness(path / "staleness.png", course, title=f"Staleness: {title}")
    if len(courses) > 1:
        plot_quality(
            folder / "compare.png",
            courses,
            title=f"{summary.verdict}\n{summary.task}, {_speeds(summary)}",
            target=target,
            central=central,
        )


def plot_quality(
    path: Path, courses: Sequence[Course], *, title: str, target: Target, central: float | None
) -> None:
    """Draw the target's metric over the seconds, of each federation from its own first round on."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=SECONDS, ylabel=f"{target.metric} on held-out data")
    for course, colour in zip(reversed(courses), (BLUE, ORANGE), strict=False):
        _draw_course(axes, course, target=target, colour=colour)
    if central is not None:
        label = f"trained in one place: {central:.3f}"
        axes.axhline(central, color=GREEN, linestyle="--", linewidth=1.3, label=label)
    axes.axhline(target.bound, color=GREY, linewidth=1, label=f"target: {target.bound:g}")
    axes.set_xlim(left=0)
    if target.metric == "accuracy":
        axes.set_ylim(0, 1.02)
    _finish(axes)
    axes.legend()
    _save(figure, path)


def plot_staleness(path: Path, course: Course, *, title: str) -> None:
    """Draw how late the updates of each worker were: how many by how much, and when."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    figure.suptitle(title)
    counts, moments = figure.subplots(1, 2, width_ratios=(1, 1.4))
    late = _staleness_by_worker(course.rows)
    colours = [colormaps["viridis"](0.9 * index / max(1, len(late) - 1)) for index in range(len(late))]
    # Room for a few versions, even if nobody was late.
    highest = max([4, *(staleness for points in late.values() for _, staleness in points)])
    if late:
        counts.hist(
            [[staleness for _, staleness in points] for points in late.values()],
            bins=[edge - 0.5 for edge in range(highest + 2)],
            stacked=True,
            color=colours,
            label=list(late),
            rwidth=0.85,
        )
        counts.legend()
    for (name, points), colour in zip(late.items(), colours, strict=True):
        seconds, staleness = [second for second, _ in points], [versions for _, versions in points]
        moments.plot(seconds, staleness, ".", color=colour, label=name)
    counts.set(xlabel="staleness (versions)", ylabel="updates", title="How late they came")
    moments.set(xlabel=SECONDS, ylabel="staleness (versions)", title="And when")
    moments.set(xlim=(0, None), ylim=(-0.5, highest + 0.5))
    for axes in (counts, moments):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axes)
    _save(figure, path)


def _draw_course(axes: Axes, course: Course, *, target: Target, colour: str) -> None:
    points = curve(course.rows, target.metric)
    reached = seconds_to_target(course.rows, target)
    when = "target not reached" if reached is None else f"target after {reached:.1f} s"
    label = f"{course.name}: {when}"
    if reached is not None:
        axes.axvline(reached, color=colour, linestyle=":", linewidth=1.5)
    seconds, values = [point.seconds for point in points], [point.value for point in points]
    axes.plot(seconds, values, ".-", color=colour, linewidth=1.6, markersize=5, label=label)


def _staleness_by_worker(rows: Sequence[VersionRow]) -> Mapping[str, list[tuple[float, int]]]:
    late: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        for update in row.folded:
            late.setdefault(update.worker, []).append((row.seconds, update.staleness))
    return dict(sorted(late.items()))


def _speeds(summary: Summary) -> str:
    fastest, slowest = summary.delays_s[0], summary.delays_s[-1]
    return f"{len(summary.delays_s)} workers that idle {fastest:g} to {slowest:g} s a round"


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    # A figure by itself, without pyplot, draws with Agg: no window system is asked for.
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
