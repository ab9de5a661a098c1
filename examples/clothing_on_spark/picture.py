"""A picture of the run: the accuracy over time, and below it a lane for each site, grouped by executor."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluffle_aggregator.goal import Target
from fluffle_cli.report.run import FederationRun

GAP_S = 0.05


def draw(run: FederationRun, target: Target, executor_of: Mapping[str, str], path: Path) -> None:
    """Draw a federation, whose sites ran in the executors that `executor_of` names, as SVG."""
    # Text stays text, which can be searched for.
    rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    _draw_quality(above, run, target)
    _draw_rounds(below, run, executor_of)
    figure.savefig(path, metadata={"Date": None})


def _draw_quality(axes: Axes, run: FederationRun, target: Target) -> None:
    curve = run.curve(target.metric)
    axes.plot([at for at, _ in curve], [value for _, value in curve], ".-")
    axes.axhline(target.bound, color="0.6", linestyle="--", label=str(target))
    axes.set(title="Held-out data, each evaluated version", ylabel=target.metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_rounds(axes: Axes, run: FederationRun, executor_of: Mapping[str, str]) -> None:
    """Draw a bar for each round whose update is in the model: from its start until it was published."""
    lanes = sorted(executor_of, key=lambda site: (executor_of[site], site))
    executors = sorted(set(executor_of.values()))
    for lane, site in enumerate(lanes):
        rounds = [each for version in run.versions for each in version.folded if each.id.worker == site]
        bars = [
            (each.published_at - each.train_s - run.began_at, max(GAP_S, each.train_s - GAP_S))
            for each in rounds
        ]
        axes.broken_barh(bars, (lane - 0.35, 0.7), color=f"C{executors.index(executor_of[site])}")
    axes.set_yticks(range(len(lanes)), [f"{site}, executor {executor_of[site]}" for site in lanes])
    axes.invert_yaxis()
    axes.set(title="Rounds: who trained when, and in which executor", xlabel="seconds")
    axes.grid(axis="x", alpha=0.3)
