"""A view of a federation for people: on a terminal, or a line of it now and then in a log file or a pipe."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fluffle.plan import Plan
from fluffle_cli.watching.findings import findings_beside_progress
from fluffle_cli.watching.privacy import spent_privacy
from fluffle_cli.watching.progress import progress_of
from fluffle_cli.watching.sealed import sealed_model
from fluffle_cli.watching.sites import sites_table
from fluffle_cli.watching.view import FederationView, QueueStates, Version, Worker
from fluffle_cli.words import bar, count, duration, number, percent, sparkline

REDRAW_EVERY_S: Final = 0.25
PLAIN_LINE_EVERY_S: Final = 3.0
# The curves of more workers would fill the screen, and their names a line.
MOST_NAMED: Final = 12
MOST_COLUMNS: Final = 3
# Of a table of workers that has all columns.
NARROW_HEADS: Final[Mapping[str, str]] = {
    "last seen": "last\nseen",
    "minibatches": "mini-\nbatches",
    "staleness": "stale-\nness",
    "share of weight": "share of\nweight",
    "share of model": "share of\nmodel",
}
# By the first word of a state.
STATE_STYLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("starting", "standing", "connected"), "dim"),
    **dict.fromkeys(("training", "leading", "evaluated", "opened"), "green"),
    **dict.fromkeys(("publishing", "published"), "cyan"),
    **dict.fromkeys(("aborted", "refused"), "yellow"),
    **dict.fromkeys(("died", "only"), "bold red"),
    "left": "blue",
}
Cells = Sequence[str | Text]


class Screen:
    """A place on the console for one federation: drawn again and again on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown_at = 0.0
        self._progress = ""

    @classmethod
    @contextmanager
    def on(cls, console: Console) -> Iterator[Self]:
        """Have a place on a console while the block lasts."""
        screen = cls(console)
        with screen._live or nullcontext():
            yield screen

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self._console.print(Text(text, style), soft_wrap=True)

    def show(self, view: FederationView, phase: str = "") -> None:
        """Show how far the federation is, if it is time to; before its first version, that is `phase`."""
        if view.newest is None and self._live is None:
            self._say_progress(phase)
        elif time.monotonic() >= self._shown_at + (REDRAW_EVERY_S if self._live else PLAIN_LINE_EVERY_S):
            self.show_now(view, phase)

    def show_now(self, view: FederationView, phase: str = "") -> None:
        """Show how far the federation is, even if something was shown just now."""
        self._shown_at = time.monotonic()
        if self._live is None:
            elapsed_s = view.newest.elapsed_s if view.newest else 0.0
            self._say_progress(f"{elapsed_s:5.1f} s  {plain_line(view)}")
        elif phase and view.newest is None:
            self._live.update(Group(Text(phase, "bold"), Text(), workers_table(view)), refresh=True)
        else:
            self._live.update(render(view), refresh=True)

    def _say_progress(self, line: str) -> None:
        if line != self._progress:
            self.say(line)
        self._progress = line


def render(view: FederationView) -> RenderableType:
    """Draw a view for a terminal of 80 columns or more."""
    newest = view.newest
    title = Text(view.federation, "bold")
    lines = [title]
    if newest is None:
        no_version = "no version yet: an aggregator publishes version 0 when it takes the lead"
        lines.append(Text(no_version, "yellow"))
    else:
        if newest.finished:
            title.append(f" has finished: {newest.finished}", "green")
        elif newest.closing:
            title.append(f" is ending ({newest.closing}): its last model is being evaluated", "green")
        rate = "" if view.updates_per_s is None else f", {view.updates_per_s:.1f} updates/s"
        said = f" (term {newest.term}) after {newest.elapsed_s:.0f} s, {newest.parameters:,} parameters, "
        version = ("version ", (str(newest.version), "bold"), f"{said}{newest.updates} updates{rate}")
        lines += [Text(newest.strategy, "dim"), Text.assemble(*version), *_quality(view, newest)]
        if privacy := spent_privacy(newest):
            lines.append(Text(privacy.in_words, "dim"))
        if sealed := sealed_model(newest):
            lines.append(Text(sealed.in_words, "dim"))
    lines.append(_queues(view))
    if others := sorted([*view.parts.items(), *view.helpers.items()]):
        parts = [Text.assemble(f"{name} ", _word(state)) for name, state in others]
        lines.append(Text(", ").join(parts))
    lines += [
        Text.assemble((f"{each.says} ", "yellow"), (each.do, "dim"))
        for each in findings_beside_progress(view)
        # Whether an aggregator is active stands beside the queues.
        if each.kind != "no-aggregator"
    ]
    return Group(*lines, *sites_lines(view), Text(), workers_table(view), *_curves(view))


def plain_line(view: FederationView) -> str:
    """Say in one line how far a federation is."""
    newest = view.newest
    if newest is None:
        return f"{view.federation}: no version yet"
    said = [f"{view.federation}: version {newest.version}", f"{newest.updates} updates"]
    if view.open_survey:
        said.append(f"survey: {view.open_survey.in_words}")
    if view.updates_per_s is not None:
        said.append(f"{view.updates_per_s:.1f} updates/s")
    if view.evaluation and view.metric:
        value = number(view.evaluation.metrics[view.metric])
        said.append(f"{view.metric} {value} ({view.evaluated_in_words})")
    workers = [f"{each.name} {each.updates}" for each in view.workers.values()]
    more = [f"and {len(workers) - MOST_NAMED} more"] if len(workers) > MOST_NAMED else []
    said += [" ".join([*workers[:MOST_NAMED], *more])] if workers else []
    said += [f"{newest.rejected} refused"] if newest.rejected else []
    said += [f"waits: {view.sum_waits}"] if view.sum_waits else []
    said += [f"finished: {newest.finished}"] if newest.finished else []
    return ", ".join(said)


def sites_lines(view: FederationView) -> list[RenderableType]:
    """Draw what the sites have measured: the worst ones, and all of them together."""
    found = sites_table(view)
    if found is None:
        return []
    names = [each.name for each in found.over[:MOST_COLUMNS]]
    rows: list[Cells] = [
        (
            row.name,
            f"{row.version}, {row.age} ago" if row.age else str(row.version),
            str(row.examples),
            *(number(row.metrics[name]) for name in names),
            "" if row.after is None else number(row.after),
        )
        for row in found.rows[:MOST_NAMED]
    ]
    over = found.over[: len(names)]
    rows += [
        ("mean", "", "", *(Text(number(each.mean), "bold") for each in over), ""),
        ("spread", "", "", *(number(each.spread) for each in over), ""),
    ]
    table = plain_table(["worst site first", "version", "rows", *names, "own round"], rows, right=names)
    more = found.sites - min(len(found.rows), MOST_NAMED)
    apart = [each.name for each in over if each.pooling == "site_mean"]
    notes = [f"and {more} more; --json has the worst 50"] if more > 0 else []
    notes += [f"not summed up, but the mean of the sites: {', '.join(apart)}"] if apart else []
    return [Text(), table, *(Text(note, "dim") for note in notes)]


def workers_table(view: FederationView) -> Table:
    """Draw the workers, one a row, with their states where any is known."""
    workers = view.workers.values()
    has_states = any(each.state for each in workers)
    has_parts = any(each.model_share < 1 for each in workers)
    plan = view.newest.plan if view.newest else Plan()
    # Where workers do not choose them, all know how many there are.
    has_steps = plan.round_seconds is not None or plan.max_batch_size is not None
    # With all columns, the table would be wider than most terminals.
    is_narrow = has_steps and has_parts
    heads = [
        "worker",
        *(["state"] if has_states else []),
        "last seen",
        *(["minibatches"] if has_steps else []),
        *("updates", "staleness", "share of weight"),
        *(["share of model"] if has_parts else []),
        *(["epsilon"] if plan.privacy else []),
        "refused",
    ]
    right = ["minibatches", "updates", "staleness", "share of model", "epsilon", "refused"]
    if is_narrow:
        heads = [NARROW_HEADS.get(head, head) for head in heads]
        right = [NARROW_HEADS.get(head, head) for head in [*right, "share of weight"]]
    rows = (_worker(each, has_state=has_states, has_steps=has_steps, has_part=has_parts) for each in workers)
    return plain_table(heads, rows, right=right, gap=1 if is_narrow else 2)


def plain_table(
    heads: Sequence[str], rows: Iterable[Cells], *, right: Collection[str] = (), gap: int = 2
) -> Table:
    """Make a table without lines, its columns `gap` characters apart, and those in `right` aligned there."""
    table = Table(box=None, header_style="dim", padding=(0, gap, 0, 0), pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=True, justify="right" if head in right else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _worker(worker: Worker, *, has_state: bool, has_steps: bool, has_part: bool) -> list[str | Text]:
    of = "" if worker.batch_size is None else f" of {worker.batch_size}"
    share = percent(worker.weight_share) if has_steps and has_part else bar(worker.weight_share)
    return [
        worker.name,
        *([Text(*_word(worker.state))] if has_state else []),
        Text("never", "dim") if worker.seen_s is None else f"{duration(worker.seen_s)} ago",
        *([("" if worker.steps is None else f"{worker.steps}{of}")] if has_steps else []),
        str(worker.updates),
        f"{worker.mean_staleness:.1f}" if worker.updates else "",
        Text(share, "magenta") if worker.updates else "",
        *([percent(worker.model_share) if worker.updates else ""] if has_part else []),
        *([] if worker.epsilon is None else [f"{worker.epsilon:.3g}"]),
        Text(str(worker.rejected), "bold red" if worker.rejected else "dim"),
    ]


def _quality(view: FederationView, newest: Version) -> list[Text]:
    name = view.metric
    if view.evaluation is None or name is None:
        return [] if view.evaluation else [Text("no version is evaluated yet", "dim")]
    value = view.evaluation.metrics[name]
    style = "bold green" if math.isfinite(value) else "bold red"
    line = Text.assemble(f"{name} ", (number(value), style), f" ({view.evaluated_in_words})")
    if view.best and name in view.best.metrics:
        by = {f"{name}:max": "highest", f"{name}:min": "lowest"}.get(newest.best_by, newest.best_by)
        line.append(f", best ({by}) {number(view.best.metrics[name])} (version {view.best.version})")
    if newest.target_held:
        line.append(f", target held {newest.target_held}x", "green")
    seen = [each.metrics[name] for each in view.evaluations if name in each.metrics]
    curve = [Text(sparkline(seen), "green")] if len(seen) > 1 else []
    return [line, *curve, Text(progress_of(view).says, "dim")]


def _queues(view: FederationView) -> Text:
    queues = view.queues or QueueStates()
    refused = count(queues.rejected_waiting, "refused message")
    if view.finished:
        late = f", and {queues.updates_waiting} that came after the end" if queues.updates_waiting else ""
        return Text(f"{refused} {'is' if queues.rejected_waiting == 1 else 'are'} kept{late}", "dim")
    line = Text(f"{count(queues.updates_waiting, 'message')} waiting, {refused} kept, ")
    if queues.aggregator_active:
        return line.append("an aggregator is active")
    return line.append("no aggregator is active", "bold yellow")


def _curves(view: FederationView) -> list[RenderableType]:
    """Draw the training loss of each worker that reports more than one."""
    curves = [each for each in view.workers.values() if len(each.losses) > 1]
    if not curves:
        return []
    rows = [
        (each.name, Text(sparkline(each.losses), "cyan"), number(each.losses[-1]))
        for each in curves[:MOST_NAMED]
    ]
    table = plain_table(("worker", "training loss, round by round", "last"), rows, right=("last",))
    more = len(curves) - MOST_NAMED
    return [Text(), table, *([Text(f"and {more} more; --json has all", "dim")] if more > 0 else [])]


def _word(state: str) -> tuple[str, str]:
    """Return a state without its detail, and the style for it."""
    word = state.partition(":")[0]
    return word, STATE_STYLES.get(word.partition(" ")[0], "")
