"""The page of a run: one HTML file that needs no other, no network and no script.

Whatever it shows may come from a stranger's file: every text is escaped, and a policy in the page forbids the
browser to load or run anything.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import nan

from fluffle.events import AFTER_THE_END
from fluffle_cli.report.pictures import Picture
from fluffle_cli.report.run import FederationRun, Run
from fluffle_cli.watching.findings import findings_beside_progress
from fluffle_cli.watching.progress import progress_of
from fluffle_cli.watching.state import REJECTED, TOOK_OVER
from fluffle_cli.watching.view import Happening, Worker
from fluffle_cli.words import count, number, sparkline

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
    about = run.about
    title = f"{about.task}: {', '.join(each.strategy for each in run.federations)}"
    body = [f"<h1>{escape(title)}</h1>", *_verdict(run), _results([run])]
    if compared is not None:
        body += ["<h2>Compared</h2>", _image(compared), _results([run, *others])]
    for federation, shown in zip(run.federations, pictures, strict=True):
        body += _federation(federation, shown)
    seed = {} if about.seed is None else {"seed": about.seed}
    body += [
        "<h2>Settings</h2>",
        _mapping({"target": about.target or "none", **seed, **about.settings}),
        "<h2>Versions</h2>",
        _mapping(about.versions) if about.versions else _soft("The run's files do not say."),
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


def _verdict(run: Run) -> list[str]:
    said = [_paragraph(f"{run.verdict}.")] if run.verdict else []
    for each in run.federations:
        ended = f"{each.strategy} ended: {each.last.finished or 'not yet'}."
        said += [_paragraph(f"{ended} {progress_of(each.view).says}"), _paragraph(_best(each))]
        if found := findings_beside_progress(each.view):
            items = "".join(f"<li>{escape(one.says)} {escape(one.do)}</li>" for one in found)
            said.append(f'<ul class="findings">{items}</ul>')
    return said


def _best(run: FederationRun) -> str:
    best, yardstick = run.last.best, run.view.yardstick
    if best is None or yardstick is None:
        return "No version is called best."
    better = "more" if yardstick.higher_is_better else "less"
    value = number(best.metrics.get(yardstick.metric, nan))
    return f"The best version is {best.version}: {yardstick.metric} {value} ({better} is better)."


def _results(runs: Sequence[Run]) -> str:
    """Return a table with a row for each federation, all by the first run's metric and target."""
    metric, goal = runs[0].metric, runs[0].goal
    rows: list[dict[str, str]] = []
    for run in runs:
        name = run.folder.name
        rows += [
            {"run": name, "strategy": each.strategy} | each.results(metric, goal) for each in run.federations
        ]
        if central := run.about.central.get(metric):
            rows.append({"run": name, "strategy": "trained in one place", f"final {metric}": number(central)})
    return _table(list(rows[0]), [[row.get(head, "") for head in rows[0]] for row in rows])


def _federation(run: FederationRun, pictures: Iterable[Picture]) -> list[str]:
    others = [each for each in run.happened if each.what != REJECTED]
    return [
        *(f"<h2>{escape(run.strategy)}</h2>", *map(_image, pictures)),
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
        senders = Counter(each.name or "unknown" for each in refused)
        body += [
            _table(["reason", "messages"], Counter(each.reason for each in refused).most_common()),
            _table(["sender", "messages"], senders.most_common(MOST_SENDERS)),
            _happenings(run, refused),
        ]
    unknown = run.last.rejected - len(refused)
    if unknown > 0:
        which = "more messages were" if refused else "messages were"
        body.append(_soft(f"{unknown} {which} refused; the run's files do not say why."))
    elif unknown < 0:
        since = count(-unknown, "message")
        body.append(_soft(f"{since} of these came since the newest version: not counted above."))
    elif not refused:
        body.append(_soft("None."))
    if late := len(every) - len(refused):
        body.append(_soft(f"{count(late, 'message')} came after the end: not counted above."))
    return body


def _workers(run: FederationRun) -> str:
    most = sorted(run.view.workers.values(), key=lambda each: -each.updates)
    heads = ["worker", "updates", "examples", "mean staleness", "share of weight", "share of examples"]
    rows = [_worker(each) for each in most[:MOST_WORKERS]]
    table = _table([*heads, "refused", "training loss, round by round"], rows)
    return table + _more(len(most) - MOST_WORKERS, "workers")


def _worker(worker: Worker) -> Cells:
    return [
        *(worker.name, worker.updates, worker.examples, f"{worker.mean_staleness:.2f}"),
        *(f"{worker.weight_share:.1%}", f"{worker.example_share:.1%}", worker.rejected),
        f"{sparkline(worker.losses)} {number(worker.losses[-1])}" if worker.losses else "",
    ]


def _happenings(run: FederationRun, happened: Sequence[Happening]) -> str:
    rows = [
        [
            f"{each.at - run.began_at:+.1f} s" if each.at else "",
            *(each.name, _WORDS.get(each.what, each.what), each.reason, each.detail),
        ]
        for each in happened[:MOST_HAPPENINGS]
    ]
    table = _table(["when", "who", "what", "reason", "details"], rows)
    return table + _more(len(happened) - MOST_HAPPENINGS, "lines")


def _mapping(said: Mapping[str, object]) -> str:
    return _table(["", ""], list(said.items()))


def _table(heads: Cells, rows: Iterable[Cells]) -> str:
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in heads)
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


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'
