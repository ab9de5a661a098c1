"""One page of the table of workers, sorted and searched over thousands of rows. Pure."""

from math import ceil, isnan
from typing import Any, Final

from fluffle_cli.watching.view import FederationView, Worker

PAGE_ROWS: Final = 50
COLUMNS: Final = (
    *("name", "state", "seen_s", "round_s", "steps", "batch_size", "updates", "examples", "mean_staleness"),
    *("weight_share", "example_share", "model_share", "rejected", "loss"),
)


def page_of(
    view: FederationView, *, sort: str = "name", descending: bool = False, search: str = "", page: int = 0
) -> dict[str, object]:
    """Return one page of the workers whose name or state contains `search`, sorted by the column `sort`.

    Those whose value is not known come last. A page beyond the last is the last. Raises KeyError for an
    unknown column.
    """
    if sort not in COLUMNS:
        raise KeyError(sort)
    sought = search.casefold()
    # The workers of a view are sorted by name.
    workers = view.workers.values()
    found = [each for each in workers if sought in each.name.casefold() or sought in each.state.casefold()]
    known = [each for each in found if getattr(each, sort) is not None]
    unknown = [each for each in found if getattr(each, sort) is None]

    def order(worker: Worker) -> tuple[bool, Any]:
        # NaN comes after all numbers, and so first in the descending order.
        value = getattr(worker, sort)
        return sort == "loss" and isnan(value), value

    known.sort(key=order, reverse=descending)
    pages = max(1, ceil(len(found) / PAGE_ROWS))
    page = min(max(0, page), pages - 1)
    rows = [*known, *unknown][page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    return {"workers": len(workers), "found": len(found), "page": page, "pages": pages} | {
        "rows": [row_of(each) for each in rows]
    }


def row_of(worker: Worker) -> dict[str, object]:
    """Return a worker's row: a value for each column, and the losses of its rounds."""
    losses = [float(f"{loss:.4g}") for loss in worker.losses]
    return {name: getattr(worker, name) for name in COLUMNS} | {"losses": losses}
