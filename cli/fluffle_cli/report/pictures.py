"""A run's pictures: quality over seconds, staleness, each worker's part, and what happened when.

The only module that needs matplotlib. They are drawn from what stands in the run's folder alone, so that
`fluffle report` draws them again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle_aggregator.goal import Target
from fluffle_cli.report.run import FederationRun, Run
from fluffle_cli.watching.state import DIED, JOINED, LEFT, TOOK_OVER
from fluffle_cli.watching.view import Happening
from fluffle_cli.words import number

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#718096", "#c53030"
COLOURS = (BLUE, ORANGE, "#805ad5", RED, "#319795", "#975a16")
# More would leave no room for the picture; the least active share one.
MOST_NAMED = 12
MOST_BINS = 60
MOST_BARS = 30
MOST_LANES = 24
MOST_LETTERS = 40
SECONDS = "seconds since the first round began"
DOTS_PER_INCH = 130


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was drawn, and what it shows in words, for people who cannot see it."""

    path: Path
    shows: str


def draw_run(run: Run) -> list[list[Picture]]:
    """Draw the pictures of each federation of a run, and return them."""
    speeds, central = "", run.about.central.get(run.metric)
    if delays := run.about.delays_s:
        speeds = f", {len(delays)} workers that idle {delays[0]:g} to {delays[-1]:g} s a round"
    if len(run.federations) > 1:
        plot_quality(
            run.folder / "compare.png",
            [(each.strategy, each) for each in run.federations],
            title=f"{run.verdict}\n{run.about.task}{speeds}",
            metric=run.metric,
            target=run.goal,
            central=central,
        )
    return [
        _draw_federation(run, each, f"{run.about.task} with {each.strategy}{speeds}")
        for each in run.federations
    ]


def draw_comparison(runs: Sequence[Run]) -> Picture:
    """Lay the curves of several runs over one another; the first says which metric, and gets the picture."""
    metric, path = runs[0].metric, runs[0].folder / "compared.png"
    federations = [
        (f"{each.strategy} in {run.folder.name}", each) for run in runs for each in run.federations
    ]
    title = f"{metric} of {len(federations)} federations"
    plot_quality(path, federations, title=title, metric=metric, target=runs[0].goal)
    return Picture(
        path, f"{metric} on held-out data over seconds: {', '.join(name for name, _ in federations)}"
    )


def plot_quality(
    path: Path,
    federations: Sequence[tuple[str, FederationRun]],
    *,
    title: str,
    metric: str,
    target: Target | None,
    central: float | None = None,
) -> None:
    """Draw a metric over the seconds, of each federation from its own first round on."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    axes = figure.add_subplot(title=plain(title), xlabel=SECONDS, ylabel=plain(f"{metric} on held-out data"))
    for (name, run), colour in zip(reversed(federations), cycle(COLOURS)):
        reached = run.seconds_to(target)
        when = "target not reached" if reached is None else f"target after {reached:.1f} s"
        if reached is not None:
            axes.axvline(reached, color=colour, linestyle=":", linewidth=1.5)
        points = run.curve(metric)
        seconds, values = [second for second, _ in points], [value for _, value in points]
        label = plain(f"{name}: {when}" if target else name)
        axes.plot(seconds, values, ".-", color=colour, linewidth=1.6, markersize=5, label=label)
        if (best := run.best_point(metric)) and run.last.best:
            said = f"best: version {run.last.best.version}, {number(best[1])}"
            axes.plot([best[0]], [best[1]], "*", color=colour, markersize=13, label=said)
    if central is not None:
        label = f"trained in one place: {central:.3f}"
        axes.axhline(central, color=GREEN, linestyle="--", linewidth=1.3, label=label)
    if target is not None:
        axes.axhline(target.bound, color=GREY, linewidth=1, label=f"target: {target.bound:g}")
    axes.set_xlim(left=0)
    if metric == "accuracy":
        axes.set_ylim(0, 1.02)
    axes.legend()
    _save(figure, path)


def plot_staleness(path: Path, run: FederationRun, *, title: str) -> None:
    """Draw how late the updates of each worker were: how many by how much, and when."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    figure.suptitle(plain(title))
    counts, moments = figure.subplots(1, 2, width_ratios=(1, 1.4))
    late = _staleness_by_worker(run)
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
    _save(figure, path)


def plot_contributions(path: Path, run: FederationRun, *, title: str) -> None:
    """Draw what each worker gave: its updates, its share of the weight, and what of it was refused."""
    workers = run.view.workers.values()
    most = sorted(workers, key=lambda each: -each.updates)[:MOST_BARS]
    of_all = "" if len(most) == len(workers) else f" (the {len(most)} most active of {len(workers)} workers)"
    figure = Figure(figsize=(9, max(2.6, 1.4 + 0.3 * len(most))), layout="constrained")
    figure.suptitle(plain(title + of_all))
    updates, share = figure.subplots(1, 2, sharey=True)
    places, counts = range(len(most)), [each.updates for each in most]
    updates.barh(places, counts, color=BLUE, label="applied")
    updates.barh(places, [each.rejected for each in most], left=counts, color=RED, label="refused")
    share.barh(places, [100 * each.weight_share for each in most], color=ORANGE)
    names = [plain(each.name[:MOST_LETTERS]) for each in most]
    updates.set(xlabel="updates", yticks=places, yticklabels=names)
    updates.invert_yaxis()
    updates.xaxis.set_major_locator(MaxNLocator(integer=True))
    share.set_xlabel("share of the weight (%)")
    updates.legend()
    _save(figure, path)


def plot_time_line(path: Path, run: FederationRun, *, title: str) -> None:
    """Draw updates and refusals as they add up, and below who was there, and when the lead changed hands."""
    lanes = _lanes(run.happened)
    height = 0.28 * max(1, len(lanes))
    figure = Figure(figsize=(9, 3.6 + height), layout="constrained")
    figure.suptitle(plain(title))
    sums, people = figure.subplots(2, 1, sharex=True, height_ratios=(3, 0.5 + height))
    seconds = [run.seconds_of(each) for each in run.versions]
    for label, colour, values in (
        ("updates applied", BLUE, [each.updates for each in run.versions]),
        ("messages refused", RED, [each.rejected for each in run.versions]),
    ):
        sums.step(seconds, values, where="post", color=colour, label=label)
    for at, term in takeovers(run):
        for axes in (sums, people):
            axes.axvline(at, color=ORANGE, linestyle=":", linewidth=1.5)
        sums.annotate(
            term, (at, 1), xycoords=("data", "axes fraction"), color=ORANGE, fontsize=8, va="bottom"
        )
    end = max([*seconds, *(each.at - run.began_at for each in run.happened)], default=1.0)
    leaders = {each.name for each in run.happened if each.what == TOOK_OVER}
    for lane, (name, story) in enumerate(lanes.items()):
        colour = GREEN if name in leaders else GREY
        for since, until in _presences(story, began_at=run.began_at, end=end):
            people.barh(lane, until - since, left=since, height=0.5, color=colour)
        for what, mark in ((JOINED, "|"), (DIED, "x")):
            # A part that joins again has lost its connection, or was started again.
            when = [each.at - run.began_at for each in story[1:] if each.what == what]
            people.plot(when, [lane] * len(when), mark, color=RED, markersize=8)
    names = [plain(name[:MOST_LETTERS]) for name in lanes]
    people.set(yticks=range(len(lanes)), yticklabels=names, xlabel=SECONDS)
    people.set_ylim(max(1, len(lanes)) - 0.5, -0.5)
    people.set_xlim(left=0)
    sums.set_ylabel("since version 0")
    sums.legend(loc="upper left")
    _save(figure, path)


def takeovers(run: FederationRun) -> Iterator[tuple[float, str]]:
    """Yield when a leader began, in seconds: as it said itself, else from the first version of its term."""
    said = [each for each in run.happened if each.what == TOOK_OVER]
    if said:
        # The first leader takes nothing over, and nobody does after the end.
        for each in said[1:]:
            if each.at - run.began_at <= run.seconds:
                yield each.at - run.began_at, each.name
        return
    for before, version in pairwise(run.versions):
        if version.term > before.term:
            yield run.seconds_of(version), f"term {version.term}"


def plain(text: str) -> str:
    """Return text as matplotlib draws it letter by letter: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _draw_federation(run: Run, federation: FederationRun, title: str) -> list[Picture]:
    quality, staleness, contributions, time_line = (
        federation.folder / f"{name}.png" for name in ("accuracy", "staleness", "contributions", "timeline")
    )
    plot_quality(
        quality,
        [(federation.strategy, federation)],
        title=title,
        metric=run.metric,
        target=run.goal,
        central=run.about.central.get(run.metric),
    )
    plot_staleness(staleness, federation, title=f"Staleness: {title}")
    plot_contributions(contributions, federation, title=f"Contributions: {title}")
    plot_time_line(time_line, federation, title=f"What happened when: {title}")
    return [
        Picture(quality, f"{run.metric} on held-out data over seconds"),
        Picture(staleness, "How many updates came how late, by worker, and when"),
        Picture(contributions, "Updates applied and refused, and share of the weight, by worker"),
        Picture(time_line, "Updates and refusals as they add up, who was there, and when the lead changed"),
    ]


def _staleness_by_worker(run: FederationRun) -> Mapping[str, list[tuple[float, int]]]:
    folded = [(run.seconds_of(version), one) for version in run.versions for one in version.folded]
    given = Counter(one.id.worker for _, one in folded)
    others = f"{len(given) - MOST_NAMED} others"
    named = {name: plain(name) for name, _ in given.most_common(MOST_NAMED)}
    late: dict[str, list[tuple[float, int]]] = {}
    for seconds, one in folded:
        late.setdefault(named.get(one.id.worker, others), []).append((seconds, one.staleness))
    return dict(sorted(late.items()))


def _lanes(happened: Sequence[Happening]) -> Mapping[str, list[Happening]]:
    lanes: dict[str, list[Happening]] = {}
    for each in happened:
        if each.what in {JOINED, LEFT, DIED} and (each.name in lanes or len(lanes) < MOST_LANES):
            lanes.setdefault(each.name, []).append(each)
    return dict(sorted(lanes.items()))


def _presences(story: Sequence[Happening], *, began_at: float, end: float) -> Iterator[tuple[float, float]]:
    """Yield from when to when a part was there, in seconds."""
    since: float | None = None
    for each in story:
        at = each.at - began_at
        if each.what == JOINED:
            since = at if since is None else since
        elif since is not None:
            yield since, at
            since = None
    if since is not None:
        yield since, end


def _save(figure: Figure, path: Path) -> None:
    """Write a picture, with a grid and no frame."""
    for axes in figure.axes:
        _tidy(axes)
    # A figure by itself, without pyplot, draws with Agg: no window system is asked for.
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
