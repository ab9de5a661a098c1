"""The plots of docs/results, drawn from lines of JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, object]


def draw(folder: Path, benchmark: str, rows: Sequence[Row]) -> list[tuple[Path, str]]:
    """Draw the plots of a benchmark, and return each one's file and title; none for one that has no plot."""
    # The same rows give the same file.
    rcParams["svg.hashsalt"] = "fluffle"
    drawn = []
    for name, (title, draw_one) in PLOTS.get(benchmark, {}).items():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        draw_one(figure, rows)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        drawn.append((path, title))
    return drawn


def _ingest(figure: Figure, rows: Sequence[Row]) -> None:
    for axes, strategy in zip(_pair(figure), ("fedbuff", "fedasync"), strict=True):
        mine = [row for row in rows if (row["strategy"], row["codec"]) == (strategy, "float32")]
        names = [f"{_number(row, 'size_mb'):g} MB\n{row['clients']} client(s)" for row in mine]
        places = range(len(mine))
        floors = [_number(row, "size_mb") * _number(row, "floor_updates_s") for row in mine]
        axes.bar(
            [at - 0.2 for at in places], [_number(row, "float32_mb_s") for row in mine], 0.4, label="Fluffle"
        )
        axes.bar([at + 0.2 for at in places], floors, 0.4, label="only acks and republishes", color="0.7")
        axes.set_xticks(list(places), names, fontsize=7)
        _dress(axes, f"Taken in, {strategy}", "", "MB of float32 a second")
        axes.legend(fontsize=8)


def _memory(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for part in ("aggregator", "standby", "worker"):
        seen = [(_number(row, "size_mb"), row[f"{part}_mb"]) for row in rows if row[f"{part}_mb"] != "-"]
        axes.plot([at for at, _ in seen], [float(str(mb)) for _, mb in seen], "o-", label=part)
    _dress(axes, "Peak resident memory, FedBuff K=10", "MB of float32 in the model", "MB")
    axes.legend(fontsize=8)


def _stragglers(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for row in rows:
        seconds, accuracies = (_numbers(row, f"curve_{name}_values") for name in ("s", "accuracy"))
        axes.step(seconds, accuracies, where="post", label=str(row["strategy"]))
    axes.axhline(0.95, color="0.6", linestyle="--")
    axes.set_ylim(0.7, 1)
    _dress(
        axes, "Eight clients, the slowest 32 times slower than the fastest", "seconds", "held-out accuracy"
    )
    axes.legend(fontsize=8, loc="lower right")


def _privacy(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for row in rows:
        updates, middle, least, greatest = (
            _numbers(row, f"course_{name}_values") for name in ("updates", "mean", "least", "greatest")
        )
        [line] = axes.plot(updates, middle, label=str(row["side"]))
        axes.fill_between(updates, least, greatest, color=line.get_color(), alpha=0.2)
    axes.set_ylim(0.6, 0.9)
    _dress(axes, "1,000 sites, at most 8 updates of each", "updates", "accuracy on test data")
    axes.legend(fontsize=8, loc="lower right")


def _fleet_course(figure: Figure, rows: Sequence[Row]) -> None:
    largest = max(rows, key=lambda row: _number(row, "workers"))
    late, deep = _pair(figure)
    seconds = _numbers(largest, "at_s_values")
    for name, color, label in (("worst", "0.7", "the latest"), ("mean", "C0", "mean")):
        found = zip(seconds, _numbers(largest, f"{name}_staleness_values"), strict=True)
        # In some half seconds nothing was committed.
        seen = [(at, each) for at, each in found if not math.isnan(each)]
        late.plot([at for at, _ in seen], [each for _, each in seen], ".-", color=color, label=label)
    late.legend(fontsize=8)
    late.set_ylim(0, None)
    _dress(late, f"Staleness with {largest['workers']} workers", "seconds", "versions")
    deep.plot(seconds, _numbers(largest, "depth_values"))
    deep.set_ylim(0, None)
    _dress(deep, "Confirmed, not yet acked", "seconds", "updates")


def _fleet_growth(figure: Figure, rows: Sequence[Row]) -> None:
    rate, late, memory = figure.subplots(1, 3)
    workers = [_number(row, "workers") for row in rows]
    rate.plot(workers, [_number(row, "of") for row in rows], "k--", label="if nobody ever waited")
    rate.plot(workers, [_number(row, "updates_s") for row in rows], "o-", label="applied")
    rate.legend(fontsize=8)
    _dress(rate, "Throughput", "workers", "updates a second")
    late.plot(workers, [_number(row, "mean_staleness") for row in rows], "o-")
    _dress(late, "Mean staleness", "workers", "versions")
    for role in ("aggregator", "broker"):
        memory.plot(workers, [_number(row, f"{role}_mb") for row in rows], "o-", label=role)
    memory.set_ylim(0, None)
    memory.legend(fontsize=8)
    _dress(memory, "Peak memory", "workers", "MB")


PLOTS: Mapping[str, Mapping[str, tuple[str, Callable[[Figure, Sequence[Row]], None]]]] = {
    "ingest": {"ingest": ("Megabytes a second, Fluffle beside the floor", _ingest)},
    "memory": {"memory": ("Peak memory by the model's size", _memory)},
    "stragglers": {"stragglers": ("Accuracy over seconds", _stragglers)},
    "privacy-accuracy": {"privacy-accuracy": ("Accuracy with and without privacy", _privacy)},
    "fleet": {
        "fleet-course": ("Staleness and queue over time", _fleet_course),
        "fleet-growth": ("What grows with the number of workers", _fleet_growth),
    },
}


def _pair(figure: Figure) -> tuple[Axes, Axes]:
    left, right = figure.subplots(1, 2)
    return left, right


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)


def _number(row: Row, name: str) -> float:
    return float(str(row[name]))


def _numbers(row: Row, name: str) -> list[float]:
    found = row[name]
    if not isinstance(found, list):
        raise TypeError(f"{name} should be a list, not {found!r}")
    return [float(each) for each in found]
