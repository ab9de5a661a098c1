"""A snapshot for people: the one picture of `fluffle status`, `fluffle status --watch` and `fluffle demo`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fluffle_cli.findings import findings_beside_progress
from fluffle_cli.history import losses_of
from fluffle_cli.snapshot import Snapshot
from fluffle_cli.standing import metric_to_show
from fluffle_cli.words import count, duration, number
from fluffle_cli.workers import WorkerFacts

SPARKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
SPARKLINE_LENGTH = 40
BAR_LENGTH = 10
# Of more workers the curves would fill the screen.
MOST_CURVES = 12
# By the first word of a state.
STATE_STYLES: Mapping[str, str] = {
    "starting": "dim",
    "fetching": "cyan",
    "training": "green",
    "idle": "dim",
    "publishing": "cyan",
    "waiting": "yellow",
    "reconnecting": "yellow",
    "leading": "green",
    "evaluating": "green",
    "done": "blue",
    "died": "bold red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What only those who started the processes know: the state of each worker, and of each other part."""

    workers: Mapping[str, str]
    parts: Mapping[str, str]


def render(snapshot: Snapshot, *, metric: str | None = None, inside: Inside | None = None) -> RenderableType:
    """Draw a snapshot for a terminal of 80 columns or more; a `metric` of None means the usual one."""
    lines = [*_title(snapshot), _progress(snapshot), *_quality(snapshot, metric), _queues(snapshot)]
    if inside is not None and inside.parts:
        lines.append(_parts(inside.parts))
    lines += _findings(snapshot)
    return Group(*lines, Text(), workers_table(snapshot, inside), *_curves(snapshot))


def workers_table(snapshot: Snapshot, inside: Inside | None = None) -> Table:
    """Draw the workers, one a row, with their states where these are known."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("worker", no_wrap=True)
    table.add_column("last update" if inside is None else "state", no_wrap=True)
    table.add_column("updates", justify="right")
    table.add_column("staleness", justify="right")
    table.add_column("share of weight", no_wrap=True)
    table.add_column("rejected", justify="right")
    states = {} if inside is None else inside.workers
    for name in sorted({*snapshot.workers, *states}):
        facts = snapshot.workers.get(name)
        state = _age(facts) if inside is None else Text(states.get(name, ""), _style(states.get(name, "")))
        if facts is None:
            table.add_row(name, state, "0", "", "", "")
            continue
        table.add_row(
            name,
            state,
            str(facts.updates),
            f"{facts.mean_staleness:.1f}",
            Text(bar(facts.weight_share), "magenta"),
            Text(str(facts.rejected), "bold red" if facts.rejected else "dim"),
        )
    return table


def shown_metric(snapshot: Snapshot, wanted: str | None = None) -> str | None:
    """Choose the metric to show: the wanted one, else the one that says what is best, else the usual one."""
    if snapshot.evaluation is None:
        return None
    return metric_to_show(snapshot.evaluation.metrics, wanted or snapshot.standing.metric)


def plain_line(snapshot: Snapshot, *, metric: str | None = None) -> str:
    """Say in one line how far a federation is, for a log file or a pipe."""
    if snapshot.version is None:
        return f"{snapshot.federation}: no version yet"
    said = [f"{snapshot.federation}: version {snapshot.version}", f"{snapshot.updates} updates"]
    if snapshot.updates_per_s is not None:
        said.append(f"{snapshot.updates_per_s:.1f} updates/s")
    name = shown_metric(snapshot, metric)
    if snapshot.evaluation is not None and name is not None:
        value = number(snapshot.evaluation.metrics[name])
        said.append(f"{name} {value} (version {snapshot.evaluation.version})")
    by_worker = " ".join(f"{name} {facts.updates}" for name, facts in snapshot.workers.items())
    said += [by_worker] if by_worker else []
    said += [f"{snapshot.rejected} rejected"] if snapshot.rejected else []
    said += [f"finished: {snapshot.finished}"] if snapshot.finished else []
    return ", ".join(said)


def sparkline(values: Sequence[float]) -> str:
    """Draw the last values as a row of blocks, the lowest as the lowest block, and a "?" if not finite."""
    shown = values[-SPARKLINE_LENGTH:]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_spark(value, low, high) for value in shown)


def bar(share: float) -> str:
    """Draw a share of 0 to 1 as a bar with its percentage."""
    full, eighths = divmod(round(share * BAR_LENGTH * 8), 8)
    blocks = EIGHTHS[8] * full + (EIGHTHS[eighths] if eighths else "")
    return f"{blocks:{BAR_LENGTH}} {share:4.0%}"


def _spark(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "?"
    # Halved, since the whole range of two huge numbers would be infinite.
    return SPARKS[round((value / 2 - low / 2) / (high / 2 - low / 2) * 7) if high / 2 > low / 2 else 0]


def _title(snapshot: Snapshot) -> list[Text]:
    title = Text(snapshot.federation, "bold")
    if snapshot.closing and not snapshot.finished:
        title.append(f" is ending ({snapshot.closing}): its last model is being evaluated", "green")
    if snapshot.finished:
        title.append(f" has finished: {snapshot.finished}", "green")
    return [title, Text(snapshot.strategy, "dim")] if snapshot.strategy else [title]


def _progress(snapshot: Snapshot) -> Text:
    if snapshot.version is None:
        return Text("no version yet: an aggregator publishes version 0 when it takes the lead", "yellow")
    rate = "" if snapshot.updates_per_s is None else f", {snapshot.updates_per_s:.1f} updates/s"
    return Text.assemble(
        "version ",
        (str(snapshot.version), "bold"),
        f" (term {snapshot.term}) after {snapshot.elapsed_s:.0f} s, {snapshot.parameters:,} parameters, "
        f"{snapshot.updates} updates{rate}",
    )


def _quality(snapshot: Snapshot, metric: str | None) -> list[Text]:
    if snapshot.evaluation is None:
        return [Text("no version is evaluated yet", "dim")] if snapshot.version is not None else []
    name = shown_metric(snapshot, metric)
    if name is None:
        return []
    newest, best = snapshot.evaluation, snapshot.best
    value = newest.metrics.get(name, math.nan)
    style = "bold green" if math.isfinite(value) else "bold red"
    line = Text.assemble(f"{name} ", (number(value), style), f" (version {newest.version})")
    if best is not None and name in best.metrics:
        by = {f"{name}:max": "highest", f"{name}:min": "lowest"}.get(snapshot.best_by, snapshot.best_by)
        line.append(f", best ({by}) {number(best.metrics[name])} (version {best.version})")
    if snapshot.target_held:
        line.append(f", target held {snapshot.target_held}x", "green")
    seen = [each.metrics[name] for each in snapshot.history.evaluations if name in each.metrics]
    lines = [line, Text(sparkline(seen), "green")] if len(seen) > 1 else [line]
    return [*lines, Text(snapshot.progress.says, "dim")]


def _findings(snapshot: Snapshot) -> list[Text]:
    return [
        Text.assemble((f"{each.says} ", "yellow"), (each.do, "dim"))
        for each in findings_beside_progress(snapshot.standing)
        # Whether an aggregator is active stands beside the queues.
        if each.kind != "no-aggregator"
    ]


def _curves(snapshot: Snapshot) -> list[RenderableType]:
    """Draw the training loss of each worker that reports more than one."""
    losses = {name: losses_of(snapshot.history, name) for name in snapshot.workers}
    curves = {name: each for name, each in losses.items() if len(each) > 1}
    if not curves:
        return []
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("worker", no_wrap=True)
    table.add_column("training loss, round by round", no_wrap=True)
    table.add_column("last", justify="right")
    for name, each in list(curves.items())[:MOST_CURVES]:
        table.add_row(name, Text(sparkline(each), "cyan"), number(each[-1]))
    more = len(curves) - MOST_CURVES
    rest = [Text(f"and {more} more; --json has all", "dim")] if more > 0 else []
    return [Text(), table, *rest]


def _queues(snapshot: Snapshot) -> Text:
    queues = snapshot.queues
    if snapshot.finished:
        late = f", and {queues.updates_waiting} that came after the end" if queues.updates_waiting else ""
        kept = "is" if queues.rejected_waiting == 1 else "are"
        return Text(f"{count(queues.rejected_waiting, 'refused message')} {kept} kept{late}", "dim")
    updates = count(queues.updates_waiting, "update")
    line = Text(f"{updates} and {count(queues.rejected_waiting, 'refused message')} waiting, ")
    if queues.aggregator_active:
        return line.append("an aggregator is active")
    return line.append("no aggregator is active", "bold yellow")


def _parts(parts: Mapping[str, str]) -> Text:
    line = Text()
    for name, state in parts.items():
        line.append(", " if line else "").append(f"{name} ").append(state, _style(state))
    return line


def _age(facts: WorkerFacts | None) -> Text:
    if facts is not None and facts.is_only_refused:
        return Text("only refused", "bold red")
    if facts is None or facts.seconds_since_update is None:
        return Text("none yet", "dim")
    return Text(duration(facts.seconds_since_update) + " ago")


def _style(state: str) -> str:
    return STATE_STYLES.get(state.partition(" ")[0], "")
