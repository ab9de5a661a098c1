"""One page of the table of workers, sorted and searched over thousands of rows. Pure."""

from dataclasses import dataclass
from math import ceil, isnan
from operator import attrgetter
from typing import Any, Final

from fluffle_cli.watching.view import FederationView, Worker

PAGE_ROWS: Final = 50
# Of text that somebody types to search for.
MOST_LETTERS: Final = 200
COLUMNS: Final = (
    *("name", "state", "seen_s", "round_s", "updates", "examples", "mean_staleness", "weight_share"),
    *("rejected", "loss"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows: those whose name or state contains `search`, by the column `sort`, and of them one page."""

    sort: str = "name"
    descending: bool = False
    search: str = ""
    page: int = 0


def page_of(view: FederationView, wanted: Wanted) -> dict[str, object]:
    """Return one page of the workers; a page beyond the last is the last. Raises KeyError for no column."""
    if wanted.sort not in COLUMNS:
        raise KeyError(wanted.sort)
    sought, value = wanted.search.casefold(), attrgetter(wanted.sort)
    # The workers of a view are sorted by name.
    found = [
        each
        for each in view.workers.values()
        if sought in each.name.casefold() or sought in each.state.casefold()
    ]
    known = [each for each in found if value(each) is not None]
    unknown = [each for each in found if value(each) is None]

    def order(worker: Worker) -> tuple[bool, Any]:
        # NaN comes after all numbers, and so first in the descending order.
        return wanted.sort == "loss" and isnan(value(worker)), value(worker)

    known.sort(key=order, reverse=wanted.descending)
    pages = max(1, ceil(len(found) / PAGE_ROWS))
    page = min(max(0, wanted.page), pages - 1)
    return {
        "workers": len(view.workers),
        "found": len(found),
        "page": page,
        "pages": pages,
        "rows": [_row(each) for each in [*known, *unknown][page * PAGE_ROWS : (page + 1) * PAGE_ROWS]],
    }


def _row(worker: Worker) -> dict[str, object]:
    losses = [float(f"{loss:.4g}") for loss in worker.losses]
    return {name: getattr(worker, name) for name in COLUMNS} | {"losses": losses}
