"""Two more pictures of a run: what each worker gave, and what happened when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle_cli.report.happenings import DIED, JOINED, LEFT, TOOK_OVER, Happening
from fluffle_cli.report.metrics import VersionRow
from fluffle_cli.report.plots import BLUE, GREEN, GREY, ORANGE, SECONDS, finish, plain, save
from fluffle_cli.workers import WorkerFacts

RED = "#c53030"
MOST_BARS = 30
MOST_LANES = 24


def plot_contributions(path: Path, workers: Mapping[str, WorkerFacts], *, title: str) -> None:
    """Draw what each worker gave: its updates, its share of the weight, and what of it was refused."""
    most = sorted(workers.items(), key=lambda item: -item[1].updates)[:MOST_BARS]
    left_out = (
        "" if len(most) == len(workers) else f" (the {len(most)} most active of {len(workers)} workers)"
    )
    figure = Figure(figsize=(9, max(2.6, 1.4 + 0.3 * len(most))), layout="constrained")
    figure.suptitle(plain(title + left_out))
    updates, share = figure.subplots(1, 2, sharey=True)
    places = range(len(most))
    counts = [totals.updates for _, totals in most]
    updates.barh(places, counts, color=BLUE, label="applied")
    updates.barh(places, [totals.rejected for _, totals in most], left=counts, color=RED, label="refused")
    share.barh(places, [100 * totals.weight_share for _, totals in most], color=ORANGE)
    updates.set(xlabel="updates", yticks=places, yticklabels=[plain(name[:40]) for name, _ in most])
    updates.invert_yaxis()
    updates.xaxis.set_major_locator(MaxNLocator(integer=True))
    share.set_xlabel("share of the weight (%)")
    updates.legend()
    finish(updates)
    finish(share)
    save(figure, path)


def plot_time_line(
    path: Path, rows: Sequence[VersionRow], happened: Sequence[Happening], *, began_at: float, title: str
) -> None:
    """Draw updates and refusals as they add up, and below who was there, and when the lead changed hands."""
    lanes = _lanes(happened)
    figure = Figure(figsize=(9, 3.6 + 0.28 * max(1, len(lanes))), layout="constrained")
    figure.suptitle(plain(title))
    sums, people = figure.subplots(2, 1, sharex=True, height_ratios=(3, 0.5 + 0.28 * max(1, len(lanes))))
    seconds = [row.seconds for row in rows]
    sums.step(seconds, [row.updates for row in rows], where="post", color=BLUE, label="updates applied")
    sums.step(seconds, [row.rejected for row in rows], where="post", color=RED, label="messages refused")
    for at, term in takeovers(rows, happened, began_at):
        for axes in (sums, people):
            axes.axvline(at, color=ORANGE, linestyle=":", linewidth=1.5)
        sums.annotate(
            term, (at, 1), xycoords=("data", "axes fraction"), color=ORANGE, fontsize=8, va="bottom"
        )
    end = max([*seconds, *(each.at - began_at for each in happened if began_at)], default=1.0)
    leaders = {each.name for each in happened if each.what == TOOK_OVER}
    for place, (name, story) in enumerate(lanes.items()):
        for since, until in _presences(story, began_at=began_at, end=end):
            colour = GREEN if name in leaders else GREY
            people.barh(place, until - since, left=since, height=0.5, color=colour)
        for what, mark in ((JOINED, "|"), (DIED, "x")):
            # Whoever joins again has lost its connection, or was started again.
            when = [each.at - began_at for each in story[1:] if each.what == what]
            people.plot(when, [place] * len(when), mark, color=RED, markersize=8)
    people.set(yticks=range(len(lanes)), yticklabels=[plain(name[:40]) for name in lanes], xlabel=SECONDS)
    people.set_ylim(max(1, len(lanes)) - 0.5, -0.5)
    people.set_xlim(left=0)
    sums.set_ylabel("since version 0")
    sums.legend(loc="upper left")
    for axes in (sums, people):
        finish(axes)
    save(figure, path)


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


def takeovers(
    rows: Sequence[VersionRow], happened: Sequence[Happening], began_at: float
) -> Iterator[tuple[float, str]]:
    """Yield when a leader began, in seconds: as it told itself, else from the first version of its term."""
    told = [each for each in happened if each.what == TOOK_OVER and began_at]
    if told:
        # The first leader takes nothing over, and nobody does after the end.
        for each in told[1:]:
            if each.at - began_at <= rows[-1].seconds:
                yield each.at - began_at, each.name
        return
    for before, row in pairwise(rows):
        if row.term > before.term:
            yield row.seconds, f"term {row.term}"
