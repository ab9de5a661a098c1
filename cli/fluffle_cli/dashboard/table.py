"""The table of workers: thousands of rows on the server, and one page of them, sorted and searched. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Final

from fluffle.record import Contributor
from fluffle_cli.dashboard.live import LiveParts

PAGE_ROWS: Final = 50
# Of text that somebody types to search for.
MOST_LETTERS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One worker. What nobody knows of it is None; `seen_s` is how long ago it was heard of."""

    name: str
    seen_s: float | None
    state: str
    round_s: float | None
    updates: int
    examples: int
    mean_staleness: float
    weight_share: float
    rejected: int


COLUMNS: Final = tuple(Row.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows: those whose name or state contains `search`, by the column `sort`, and of them one page."""

    sort: str = "name"
    descending: bool = False
    search: str = ""
    page: int = 0


def rows_of(contributors: Mapping[str, Contributor], live: LiveParts, now: float) -> list[Row]:
    """Return a row for each worker that has contributed or was heard of."""
    total = sum(each.weight_sum for each in contributors.values())
    nobody = Contributor()
    rows = []
    for name in {*contributors, *live.names()}:
        given, part = contributors.get(name, nobody), live.get(name)
        seen_at = max(given.last_update_at, part.heard_at if part else 0.0)
        rows.append(
            Row(
                name=name,
                # Two machines' clocks need not agree.
                seen_s=max(0.0, now - seen_at) if seen_at else None,
                state=part.state if part else "",
                round_s=part.round_s if part else None,
                updates=given.updates,
                examples=given.examples,
                mean_staleness=given.mean_staleness,
                weight_share=given.weight_sum / total if total else 0.0,
                rejected=given.rejected,
            )
        )
    return rows


def page_of(rows: list[Row], wanted: Wanted) -> dict[str, object]:
    """Return one page as JSON has it; a page beyond the last is the last. Raises KeyError for no column."""
    if wanted.sort not in COLUMNS:
        raise KeyError(wanted.sort)
    sought = wanted.search.casefold()
    found = [row for row in rows if sought in row.name.casefold() or sought in row.state.casefold()]
    found.sort(key=lambda row: row.name)
    known = [row for row in found if getattr(row, wanted.sort) is not None]
    unknown = [row for row in found if getattr(row, wanted.sort) is None]
    known.sort(key=lambda row: getattr(row, wanted.sort), reverse=wanted.descending)
    pages = max(1, ceil(len(found) / PAGE_ROWS))
    page = min(max(0, wanted.page), pages - 1)
    shown = [*known, *unknown][page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    return {
        "workers": len(rows),
        "found": len(found),
        "page": page,
        "pages": pages,
        "rows": [asdict(row) for row in shown],
    }
