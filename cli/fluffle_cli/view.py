"""A snapshot for people: the one picture of `fluffle status`, `fluffle status --watch` and `fluffle demo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fluffle_cli.snapshot import Snapshot, WorkerFacts

SPARKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
SPARKLINE_LENGTH = 40
BAR_LENGTH = 10
# Whichever an evaluation has first is shown, unless another metric is asked for.
USUAL_METRICS = ("accuracy", "loss")
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


@dataclass(slots=True)
class History:
    """The metric of each evaluated version, for a sparkline; a `metric` of None means the usual one."""

    metric: str | None = None
    values: list[float] = field(default_factory=list)
    _last_version: int = -1

    def note(self, snapshot: Snapshot) -> None:
        """Take in the newest evaluation, if it is a new one."""
        evaluation = snapshot.evaluation
        if evaluation is None or evaluation.version <= self._last_version:
            return
        name = metric_to_show(evaluation.metrics, self.metric)
        if name is not None:
            self._last_version = evaluation.version
            self.values.append(evaluation.metrics[name])


def metric_to_show(metrics: Mapping[str, float], wanted: str | None = None) -> str | None:
    """Choose the metric that stands for an evaluation; None when it has none."""
    names = [name for name in (wanted, *USUAL_METRICS) if name in metrics]
    return names[0] if names else next(iter(metrics), None)


def render(
    snapshot: Snapshot, *, history: History | None = None, inside: Inside | None = None
) -> RenderableType:
    """Draw a snapshot for a terminal of 80 columns or more."""
    history = history or History()
    lines = [*_title(snapshot), _progress(snapshot), *_quality(snapshot, history), _queues(snapshot)]
    if inside is not None and inside.parts:
        lines.append(_parts(inside.parts))
    return Group(*lines, Text(), workers_table(snapshot, inside))


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


def plain_line(snapshot: Snapshot, *, metric: str | None = None) -> str:
    """Say in one line how far a federation is, for a log file or a pipe."""
    if snapshot.version is None:
        return f"{snapshot.federation}: no version yet"
    said = [f"{snapshot.federation}: version {snapshot.version}", f"{snapshot.updates} updates"]
    if snapshot.updates_per_s is not None:
        said.append(f"{snapshot.updates_per_s:.1f} updates/s")
    if snapshot.evaluation is not None:
        name = metric_to_show(snapshot.evaluation.metrics, metric)
        if name is not None:
            said.append(
                f"{name} {snapshot.evaluation.metrics[name]:.4f} (version {snapshot.evaluation.version})"
            )
    by_worker = " ".join(f"{name} {facts.updates}" for name, facts in snapshot.workers.items())
    said += [by_worker] if by_worker else []
    said += [f"{snapshot.rejected} rejected"] if snapshot.rejected else []
    said += [f"finished: {snapshot.finished}"] if snapshot.finished else []
    return ", ".join(said)


def sparkline(values: Sequence[float]) -> str:
    """Draw the last values as a row of blocks, the lowest of them as the lowest block."""
    shown = values[-SPARKLINE_LENGTH:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    steps = len(SPARKS) - 1
    return "".join(
        SPARKS[round((value - low) / (high - low) * steps) if high > low else 0] for value in shown
    )


def bar(share: float) -> str:
    """Draw a share of 0 to 1 as a bar with its percentage."""
    full, eighths = divmod(round(share * BAR_LENGTH * 8), 8)
    blocks = EIGHTHS[8] * full + (EIGHTHS[eighths] if eighths else "")
    return f"{blocks:{BAR_LENGTH}} {share:4.0%}"


def _title(snapshot: Snapshot) -> list[Text]:
    title = Text(snapshot.federation, "bold")
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


def _quality(snapshot: Snapshot, history: History) -> list[Text]:
    if snapshot.evaluation is None:
        return [Text("no version is evaluated yet", "dim")] if snapshot.version is not None else []
    name = metric_to_show(snapshot.evaluation.metrics, history.metric)
    if name is None:
        return []
    newest, best = snapshot.evaluation, snapshot.best
    line = Text.assemble(
        f"{name} ", (f"{newest.metrics[name]:.4f}", "bold green"), f" (version {newest.version})"
    )
    if best is not None and name in best.metrics:
        line.append(f", best {best.metrics[name]:.4f} (version {best.version})")
    if snapshot.target_held:
        line.append(f", target held {snapshot.target_held}x", "green")
    return [line, Text(sparkline(history.values), "green")] if len(history.values) > 1 else [line]


def _queues(snapshot: Snapshot) -> Text:
    queues = snapshot.queues
    line = Text(f"{queues.updates_waiting} updates and {queues.rejected_waiting} rejected waiting, ")
    if queues.aggregator_active:
        return line.append("an aggregator is active")
    return line.append("no aggregator is active", "dim" if snapshot.finished else "bold yellow")


def _parts(parts: Mapping[str, str]) -> Text:
    line = Text()
    for name, state in parts.items():
        line.append(", " if line else "").append(f"{name} ").append(state, _style(state))
    return line


def _age(facts: WorkerFacts | None) -> Text:
    if facts is None or facts.seconds_since_update is None:
        return Text("none yet", "dim")
    return Text(_duration(facts.seconds_since_update) + " ago")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _style(state: str) -> str:
    return STATE_STYLES.get(state.partition(" ")[0], "")
