"""A run's pictures: quality over seconds, staleness, and several runs beside each other.

They are drawn from the files in the run's folder alone, so that `fluffle report` draws them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle_aggregator.goal import Target
from fluffle_cli.report.metrics import VersionRow, best_point, curve, seconds_to_target
from fluffle_cli.words import number

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
COLOURS = (BLUE, ORANGE, "#805ad5", "#c53030", "#319795", "#975a16")
# More would leave no room for the picture; the least active share one.
MOST_NAMED = 12
MOST_BINS = 60
SECONDS = "seconds since the first round began"
DOTS_PER_INCH = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One federation in a picture: its strategy's name and its versions."""

    name: str
    rows: Sequence[VersionRow]


def plot_quality(
    path: Path,
    courses: Sequence[Course],
    *,
    title: str,
    metric: str,
    target: Target | None,
    central: float | None,
) -> None:
    """Draw a metric over the seconds, of each federation from its own first round on."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    axes = figure.add_subplot(title=plain(title), xlabel=SECONDS, ylabel=plain(f"{metric} on held-out data"))
    for course, colour in zip(reversed(courses), cycle(COLOURS)):
        _draw_course(axes, course, metric=metric, target=target, colour=colour)
    if central is not None:
        label = f"trained in one place: {central:.3f}"
        axes.axhline(central, color=GREEN, linestyle="--", linewidth=1.3, label=label)
    if target is not None:
        axes.axhline(target.bound, color=GREY, linewidth=1, label=f"target: {target.bound:g}")
    axes.set_xlim(left=0)
    if metric == "accuracy":
        axes.set_ylim(0, 1.02)
    finish(axes)
    axes.legend()
    save(figure, path)


def plot_staleness(path: Path, course: Course, *, title: str) -> None:
    """Draw how late the updates of each worker were: how many by how much, and when."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    figure.suptitle(plain(title))
    counts, moments = figure.subplots(1, 2, width_ratios=(1, 1.4))
    late = _staleness_by_worker(course.rows)
    colours = [colormaps["viridis"](0.9 * index / max(1, len(late) - 1)) for index in range(len(late))]
    # Room for a few versions, even if nobody was late.
    highest = max([4, *(staleness for points in late.values() for _, staleness in points)])
    if late:
        counts.hist(
            [[staleness for _, staleness in points] for points in late.values()],
            # One for each number of versions, while there is room.
            bins=np.linspace(-0.5, highest + 0.5, min(highest + 1, MOST_BINS) + 1),
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
        finish(axes)
    save(figure, path)


def _draw_course(axes: Axes, course: Course, *, metric: str, target: Target | None, colour: str) -> None:
    points = curve(course.rows, metric)
    reached = seconds_to_target(course.rows, target) if target else None
    when = "target not reached" if reached is None else f"target after {reached:.1f} s"
    label = plain(f"{course.name}: {when}" if target else course.name)
    if reached is not None:
        axes.axvline(reached, color=colour, linestyle=":", linewidth=1.5)
    seconds, values = [point.seconds for point in points], [point.value for point in points]
    axes.plot(seconds, values, ".-", color=colour, linewidth=1.6, markersize=5, label=label)
    best = best_point(course.rows, metric)
    if best is not None:
        said = f"best: version {course.rows[-1].best_version}, {number(best.value)}"
        axes.plot([best.seconds], [best.value], "*", color=colour, markersize=13, label=said)


def plain(text: str) -> str:
    """Return text as matplotlib draws it letter by letter: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _staleness_by_worker(rows: Sequence[VersionRow]) -> Mapping[str, list[tuple[float, int]]]:
    given = Counter(update.worker for row in rows for update in row.folded)
    others = f"{len(given) - MOST_NAMED} others"
    named = {name: plain(name) for name, _ in given.most_common(MOST_NAMED)}
    late: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        for update in row.folded:
            late.setdefault(named.get(update.worker, others), []).append((row.seconds, update.staleness))
    return dict(sorted(late.items()))


def finish(axes: Axes) -> None:
    """Draw a grid, and no frame."""
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a picture."""
    # A figure by itself, without pyplot, draws with Agg: no window system is asked for.
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
