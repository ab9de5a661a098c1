"""The picture of a sweep: one HTML file, drawn like a report, that needs no other file and no network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fluffle.whole_file import write_whole
from fluffle_aggregator.goal import parse_target
from fluffle_cli.report.page import assembled, thinned
from fluffle_cli.report.run import read_run
from fluffle_cli.simulate.one_run import RunResult
from fluffle_cli.simulate.results import SweepResults
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.words import count, number

FILE: Final = "sweep.html"
MODULES: Final = ("text", "charts", "sections", "sweep")
# As many colours as there are.
MOST_CURVES: Final = 6
DOCUMENT: Final = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>Fluffle</title>
</head>
<body>
  <header><h1 id="title">Fluffle</h1></header>
  <main></main>
  <noscript>This page needs JavaScript. The same results are in results.csv and results.json.</noscript>
</body>
</html>
"""


def write_page(found: SweepResults, verdict: Sequence[str], settings: SimulateSettings, folder: Path) -> Path:
    """Write the page of a sweep into its folder, and return where it is. Raises ConfigError."""
    path = folder / FILE
    write_whole(path, [assembled(DOCUMENT, MODULES, data_of(found, verdict, settings)).encode()])
    return path


def data_of(found: SweepResults, verdict: Sequence[str], settings: SimulateSettings) -> dict[str, object]:
    """Return what sweep.js shows."""
    seeds = f"{found.grid.seeds[0]} to {found.grid.seeds[-1]}"
    strips = [_strips(found, f"final {found.metric}", "final", None)]
    if found.target:
        title = f"Virtual seconds until {found.target} held for {found.hold_s:g} s"
        strips.insert(0, _strips(found, title, "target_s", 0.0))
    goal = parse_target(found.target) if found.target else None
    combinations = count(len(found.grid.combinations), "combination")
    return {
        "title": f"{settings.task}: {combinations}, {count(len(found.grid.seeds), 'seed')} each",
        "verdict": list(verdict),
        "results": found.table(),
        "metric": found.metric,
        "never": found.never,
        "strips": [each for each in strips if each["rows"]],
        "curves": [curve for place in found.order[:MOST_CURVES] if (curve := _curve(found, place))],
        "lines": [[f"target: {goal.bound:g}", goal.bound]] if goal else [],
        "failures": [
            [found.grid.combinations[each.place].label, str(each.seed), each.error] for each in found.failures
        ],
        "settings": list((settings.shown | {"seeds": seeds, "task": settings.task}).items()),
    }


def _strips(found: SweepResults, title: str, name: str, starts_at: float | None) -> dict[str, object]:
    """Return the values of a field of RunResult of each seed; None stands for what is infinite."""
    rows = []
    for place in found.order:
        if spread := found.spread(place, name):
            values = [(each.seed, _finite(getattr(each, name))) for each in found.results[place]]
            says = spread.in_words(number, never=found.never)
            label = found.grid.combinations[place].label
            rows.append({"name": label, "values": values, "median": _finite(spread.median), "says": says})
    return {"title": title, "from": starts_at, "rows": rows}


def _curve(found: SweepResults, place: int) -> dict[str, object] | None:
    """Return the curve of a combination's middle run; None where that has no update, and so no curve."""
    middle = _middle(found.results[place], has_target=bool(found.target))
    if not middle.updates:
        return None
    [federation] = read_run(Path(middle.folder)).federations
    name = f"{found.grid.combinations[place].label}, seed {middle.seed}"
    return {"name": name, "points": thinned(federation.curve(found.metric))}


def _middle(runs: Sequence[RunResult], *, has_target: bool) -> RunResult:
    ordered = sorted(runs, key=lambda each: each.target_s if has_target else each.final)
    return ordered[len(ordered) // 2]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
