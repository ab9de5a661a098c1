"""The page of a run: the live page's files and the run's data in one HTML file, which needs no network.

The data may come from a stranger's file. The page writes them as text and never as markup, and a policy in it
lets the browser run the scripts of this program and no others.
"""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from math import isfinite
from typing import Final

from fluffle_cli.dashboard.table import row_of
from fluffle_cli.history import Series, the_later
from fluffle_cli.over_seeds import Spread
from fluffle_cli.plain_json import as_text
from fluffle_cli.report.comparison import curve, name_of, results, seeds_table, verdict
from fluffle_cli.report.run import FederationRun, Run
from fluffle_cli.watching.as_json import as_json
from fluffle_cli.watching.state import REJECTED, TOOK_OVER
from fluffle_cli.words import number

MOST_HAPPENINGS: Final = 300
MOST_SENDERS: Final = 20
# Each imports only modules that stand before it. app.js, which asks a server, is not among them.
MODULES: Final = ("text", "charts", "sections", "quality", "sites", "page", "workers", "report")
Point = tuple[float | None, ...]


def page(run: Run, others: Sequence[Run]) -> str:
    """Return the page of a run, compared with other runs where there are any."""
    return assembled(asset("index.html"), MODULES, data_of(run, others))


def assembled(document: str, modules: Sequence[str], data: object) -> str:
    """Return an HTML document as one file: with styles, scripts and the data that the last module shows.

    What `document` itself names in <link> and <script> is left out.
    """
    style = asset("vendor/uPlot.min.css") + asset("style.css")
    plotter = asset("vendor/uPlot.iife.min.js")
    # What a module imports stands in the same script.
    joined = "".join(asset(f"{name}.js") for name in modules)
    program = re.sub(r"^(import .*\n|export )", "", joined, flags=re.MULTILINE)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(plotter)} {_hash(program)}"
    # No text of the data can end the script that holds them.
    said = as_text(data, is_short=True).replace("<", r"\u003c")
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n'
        f'<script type="application/json" id="run">{said}</script>\n'
        f'<script>{plotter}</script>\n<script type="module">{program}</script>\n</head>'
    )
    without_files = re.sub(r" *<(link|script) .*\n", "", document)
    return without_files.replace("</head>", head, 1)


def data_of(run: Run, others: Sequence[Run]) -> dict[str, object]:
    """Return what report.js shows: the results of all runs, by the metric and target of `run`, and `run`."""
    about, metric, goal = run.about, run.metric, run.goal
    lines = [[f"target: {goal.bound:g}", goal.bound]] if goal else []
    if central := about.central.get(metric):
        lines.append([f"trained in one place: {number(central)}", central])
    curves, rows = [], []
    for one in (run, *others):
        name = {"run": one.folder.name} if others else {}
        for strategy, group in one.groups.items():
            runs = list(group.values())
            many = f", median of {len(runs)} seeds" if len(runs) > 1 else ""
            label = f"{strategy}{f' in {one.folder.name}' if others else ''}{many}"
            held = Spread.of([each.held_s(goal) for each in runs]) if goal else None
            reached = held.median if held and isfinite(held.median) else None
            curves.append({"name": label, "points": thinned(curve(runs, metric)), "reached": reached})
            rows.append(name | {"strategy": strategy} | results(runs, metric, goal))
        if central := one.about.central.get(metric):
            final = {f"final {metric}": number(central)}
            rows.append(name | {"strategy": "trained in one place"} | final)
    seed = {} if about.seed is None else {"seed": about.seed}
    settings = {"target": about.target or "none", **seed, **about.settings}
    return {
        "title": f"{about.task}: {', '.join(run.groups)}",
        "folder": str(run.folder),
        "verdict": f"{said}." if (said := verdict(run)) else "",
        "compared": {"metric": metric, "lines": lines, "curves": curves},
        "results": [list(rows[0]), [[row.get(head, "") for head in rows[0]] for row in rows]],
        "seeds": seeds_table(run),
        "federations": [_federation(each) | {"name": name_of(each, run)} for each in run.federations],
        "settings": [[name, str(value)] for name, value in settings.items()],
        "versions": list(about.versions.items()) or [("unknown", "the run's files do not say")],
    }


def _federation(run: FederationRun) -> dict[str, object]:
    view = run.view
    # Nobody looks at the queues: what waited at the end came too late.
    waiting = view.after_the_end if view.finished else None
    queues = {"updates_waiting": waiting, "aggregator_active": False, "rejected_waiting": None}
    happened = [each for each in run.happened if each.what != REJECTED]
    late = [[one.staleness for one in each.folded] for each in run.versions]
    course = [
        (run.seconds_of(each), each.updates, each.rejected, sum(values) / len(values) if values else None)
        for each, values in zip(run.versions, late, strict=True)
    ]
    return {
        "state": as_json(view) | {"queues": queues},
        "workers": [row_of(each) for each in view.workers.values()],
        "senders": Counter(each.name or "unknown" for each in run.refused).most_common(MOST_SENDERS),
        "course": thinned(course),
        "happened": [
            [
                f"{each.at - run.began_at:+.1f} s" if each.at else "",
                *(each.name, "began to lead" if each.what == TOOK_OVER else each.what, each.detail),
            ]
            for each in happened[:MOST_HAPPENINGS]
        ],
        "left": max(0, len(happened) - MOST_HAPPENINGS),
    }


def thinned(points: Iterable[Point]) -> list[Point]:
    """Return at most as many points as a screen has room for."""
    series: Series[Point] = Series(the_later)
    for point in points:
        series.add(point)
    return series.points


def asset(name: str) -> str:
    """Return the text of a file of the live page."""
    return (files("fluffle_cli.dashboard") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
