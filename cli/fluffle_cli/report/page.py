"""The page of a run: one HTML file that needs no other, no network and no script.

Whatever it shows may come from a stranger's file: every text is escaped, and a policy in the page forbids the
browser to load or run anything.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from math import nan

from fluffle.events import AFTER_THE_END
from fluffle_cli.findings import findings_beside_progress
from fluffle_cli.history import losses_of
from fluffle_cli.report.happenings import REJECTED, TOOK_OVER, Happening
from fluffle_cli.report.metrics import curve, seconds_to_target
from fluffle_cli.report.pictures import Picture
from fluffle_cli.report.run_folder import FederationRun, Run
from fluffle_cli.standing import Standing, progress_of
from fluffle_cli.view import sparkline
from fluffle_cli.words import count, number

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MOST_HAPPENINGS = 300
MOST_WORKERS = 500
MOST_SENDERS = 20
_WORDS = {TOOK_OVER: "began to lead", REJECTED: "refused"}
STYLE = """
:root { color-scheme: light dark; --line: #cbd5e0; --soft: #718096; }
@media (prefers-color-scheme: dark) { :root { --line: #4a5568; --soft: #a0aec0; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); }
td:not(:last-child) { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.findings { color: #c05621; }
figure { margin: 1rem 0; } figcaption, .soft { color: var(--soft); }
"""

Cells = Sequence[object]


def page(
    run: Run, pictures: Sequence[Sequence[Picture]], others: Sequence[Run], compared: Picture | None
) -> str:
    """Return the page of a run, with its pictures, and beside other runs where there are any."""
    summary = run.summary
    title = f"{summary.task}: {', '.join(each.about.strategy for each in run.federations)}"
    body = [f"<h1>{escape(title)}</h1>", *_verdict(run), _results([run])]
    if compared is not None:
        body += ["<h2>Compared</h2>", _image(compared), _results([run, *others])]
    for federation, shown in zip(run.federations, pictures, strict=True):
        body += _federation(federation, shown)
    body += [
        "<h2>Settings</h2>",
        _mapping({"target": summary.target or "none", **_seed(run), **summary.settings}),
        "<h2>Versions</h2>",
        _mapping(summary.versions) if summary.versions else _soft("The run's files do not say."),
        _soft(f"Made by `fluffle report` from {run.folder}."),
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def _seed(run: Run) -> dict[str, int]:
    return {} if run.summary.seed is None else {"seed": run.summary.seed}


def _verdict(run: Run) -> list[str]:
    said = [f"<p>{escape(run.summary.verdict)}.</p>"] if run.summary.verdict else []
    for each in run.federations:
        standing = each.standing
        ended = f"{each.about.strategy} ended: {each.about.finished or 'not yet'}."
        said.append(f"<p>{escape(ended)} {escape(progress_of(standing).says)}</p>")
        said.append(f"<p>{escape(_best(standing))}</p>")
        if found := findings_beside_progress(standing):
            items = "".join(f"<li>{escape(one.says)} {escape(one.do)}</li>" for one in found)
            said.append(f'<ul class="findings">{items}</ul>')
    return said


def _best(standing: Standing) -> str:
    best, yardstick = standing.best, standing.yardstick
    if best is None or yardstick is None:
        return "No version is called best."
    better = "more" if yardstick.higher_is_better else "less"
    value = number(best.metrics.get(yardstick.metric, nan))
    return f"The best version is {best.version}: {yardstick.metric} {value} ({better} is better)."


def _results(runs: Sequence[Run]) -> str:
    """Return a table with a row for each federation, all by the first run's metric and target."""
    metric, goal = runs[0].summary.metric, runs[0].summary.goal
    header = ["run", "strategy", f"final {metric}", "best", f"{goal or 'target'} held from", "seconds"]
    rows = []
    for run in runs:
        for each in run.federations:
            about, points = each.about, curve(each.rows, metric)
            final = about.final.get(metric, points[-1].value if points else None)
            reached = seconds_to_target(each.rows, goal) if goal else None
            late = [one.staleness for row in each.rows for one in row.folded]
            rows.append(
                [
                    *(run.folder.name, about.strategy, "unknown" if final is None else number(final)),
                    _best_cell(each, metric),
                    "never" if reached is None else f"{reached:.1f} s",
                    *(f"{about.seconds:.1f}", about.versions, about.updates),
                    f"{sum(late) / len(late):.2f}" if late else "",
                    about.rejected,
                ]
            )
        if central := run.summary.central.get(metric):
            rows.append([run.folder.name, "trained in one place", number(central), *[""] * 7])
    return _table([*header, "versions", "updates", "mean staleness", "refused"], rows)


def _best_cell(run: FederationRun, metric: str) -> str:
    best = run.rows[-1].best_version
    value = run.rows[-1].best_metrics.get(metric)
    return "" if best is None or value is None else f"{number(value)} (version {best})"


def _federation(run: FederationRun, pictures: Iterable[Picture]) -> list[str]:
    others = [each for each in run.happened if each.what != REJECTED]
    return [
        *(f"<h2>{escape(run.about.strategy)}</h2>", *map(_image, pictures)),
        *("<h3>Workers</h3>", _workers(run), "<h3>Refused messages</h3>", *_refused(run)),
        "<h3>Time line</h3>",
        _happenings(run, others) if others else _soft("The run's files say nothing but the versions."),
    ]


def _refused(run: FederationRun) -> list[str]:
    """Return what was refused; what came after the end is counted apart, as in the records."""
    every = [each for each in run.happened if each.what == REJECTED]
    refused = [each for each in every if each.reason != AFTER_THE_END]
    body = []
    if refused:
        reasons = Counter(each.reason for each in refused)
        senders = Counter(each.name for each in refused)
        named = [[name or "unknown", messages] for name, messages in senders.most_common(MOST_SENDERS)]
        body += [
            _table(["reason", "messages"], reasons.most_common()),
            _table(["sender", "messages"], named),
            _happenings(run, refused),
        ]
    if (unknown := run.about.rejected - len(refused)) > 0:
        which = "more messages were" if refused else "messages were"
        body.append(_soft(f"{unknown} {which} refused; the run's files do not say why."))
    elif not refused:
        body.append(_soft("None."))
    if unknown < 0:
        body.append(
            _soft(f"{count(-unknown, 'message')} of these came since the newest version: not counted above.")
        )
    if late := len(every) - len(refused):
        body.append(_soft(f"{count(late, 'message')} came after the end: not counted above."))
    return body


def _workers(run: FederationRun) -> str:
    most = sorted(run.about.workers.items(), key=lambda item: -item[1].updates)
    history = run.standing.history
    rows = [
        [
            name,
            one.updates,
            one.examples,
            f"{one.mean_staleness:.2f}",
            f"{one.weight_share:.1%}",
            f"{one.example_share:.1%}",
            one.rejected,
            _loss(losses_of(history, name)),
        ]
        for name, one in most[:MOST_WORKERS]
    ]
    header = ["worker", "updates", "examples", "mean staleness", "share of weight", "share of examples"]
    return _table([*header, "refused", "training loss, round by round"], rows) + _more(
        len(most) - MOST_WORKERS, "workers"
    )


def _loss(losses: Sequence[float]) -> str:
    return f"{sparkline(losses)} {number(losses[-1])}" if losses else ""


def _happenings(run: FederationRun, happened: Sequence[Happening]) -> str:
    rows = [
        [
            _when(each.at, run.about.began_at),
            each.name,
            _WORDS.get(each.what, each.what),
            each.reason,
            each.detail,
        ]
        for each in happened[:MOST_HAPPENINGS]
    ]
    return _table(["when", "who", "what", "reason", "details"], rows) + _more(
        len(happened) - MOST_HAPPENINGS, "lines"
    )


def _when(at: float, began_at: float) -> str:
    if began_at:
        return f"{at - began_at:+.1f} s"
    return datetime.fromtimestamp(at).isoformat(" ", "seconds") if 0 < at < 1e11 else ""


def _mapping(said: Mapping[str, object]) -> str:
    return _table(["", ""], list(said.items()))


def _table(header: Cells, rows: Iterable[Cells]) -> str:
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _image(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    shows = escape(picture.shows)
    image = f'<img src="data:image/png;base64,{data}" alt="{shows}">'
    return f"<figure>{image}<figcaption>{shows}</figcaption></figure>"


def _more(left: int, what: str) -> str:
    return _soft(f"And {left} more {what}.") if left > 0 else ""


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'
