"""The table of workers: thousands of rows on the server, and one page of them, sorted and searched. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, isnan
from typing import Final

from fluffle_cli.dashboard.live import Live, LiveParts
from fluffle_cli.history import History, losses_of
from fluffle_cli.workers import WorkerFacts

PAGE_ROWS: Final = 50
# Of text that somebody types to search for.
MOST_LETTERS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One worker. What nobody knows of it is None; `seen_s` is how long ago it was heard of.

    `loss` is that of its last round, which may be NaN.
    """

    name: str
    seen_s: float | None
    state: str
    round_s: float | None
    updates: int
    examples: int
    mean_staleness: float
    weight_share: float
    rejected: int
    loss: float | None


NOBODY: Final = WorkerFacts(updates=0, examples=0, mean_staleness=0.0, weight_share=0.0)
COLUMNS: Final = tuple(Row.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows: those whose name or state contains `search`, by the column `sort`, and of them one page."""

    sort: str = "name"
    descending: bool = False
    search: str = ""
    page: int = 0


def rows_of(
    workers: Mapping[str, WorkerFacts], live: LiveParts, history: History, now: float, *, is_over: bool
) -> list[Row]:
    """Return a row for each worker that has contributed or was heard of."""
    rows = []
    for name in {*workers, *live.names()}:
        facts, part, rounds = workers.get(name, NOBODY), live.get(name), history.rounds.get(name)
        losses = rounds.losses if rounds else ()
        rows.append(
            Row(
                name=name,
                seen_s=_silence_s(facts, part, now),
                state=_state(facts, part, is_over=is_over),
                round_s=part.round_s if part else None,
                updates=facts.updates,
                examples=facts.examples,
                mean_staleness=facts.mean_staleness,
                weight_share=facts.weight_share,
                rejected=facts.rejected,
                loss=losses[-1] if losses else facts.loss,
            )
        )
    return rows


def silences_of(workers: Mapping[str, WorkerFacts], live: LiveParts, now: float) -> dict[str, float]:
    """Return how long each worker was not heard of that has given updates and has not left."""
    silences = {}
    for name, facts in workers.items():
        part = live.get(name)
        silence_s = _silence_s(facts, part, now)
        if facts.updates and silence_s is not None and not (part and part.has_left):
            silences[name] = silence_s
    return silences


def _silence_s(facts: WorkerFacts, part: Live | None, now: float) -> float | None:
    # Two machines' clocks need not agree.
    heard_s = max(0.0, now - part.heard_at) if part else None
    known = [each for each in (facts.seconds_since_update, heard_s) if each is not None]
    return min(known, default=None)


def _state(facts: WorkerFacts, part: Live | None, *, is_over: bool) -> str:
    if facts.is_only_refused:
        return f"only refused: {facts.refusal}"
    # After the end nobody trains or waits; one that died tells nothing.
    return "" if part is None or (is_over and not part.has_left) else part.state


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and isnan(value)


def page_of(rows: list[Row], wanted: Wanted, history: History) -> dict[str, object]:
    """Return one page, with the losses of its workers; a page beyond the last is the last.

    Raises KeyError for no column.
    """
    if wanted.sort not in COLUMNS:
        raise KeyError(wanted.sort)
    sought = wanted.search.casefold()
    found = [row for row in rows if sought in row.name.casefold() or sought in row.state.casefold()]
    found.sort(key=lambda row: row.name)
    known = [row for row in found if getattr(row, wanted.sort) is not None]
    unknown = [row for row in found if getattr(row, wanted.sort) is None]
    # What is not finite comes after all numbers, and so first in the descending order.
    known.sort(
        key=lambda row: (_is_nan(getattr(row, wanted.sort)), getattr(row, wanted.sort)),
        reverse=wanted.descending,
    )
    pages = max(1, ceil(len(found) / PAGE_ROWS))
    page = min(max(0, wanted.page), pages - 1)
    shown = [*known, *unknown][page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    return {
        "workers": len(rows),
        "found": len(found),
        "page": page,
        "pages": pages,
        "rows": [
            asdict(row) | {"losses": [float(f"{loss:.4g}") for loss in losses_of(history, row.name)]}
            for row in shown
        ],
    }
