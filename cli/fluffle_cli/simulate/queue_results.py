"""What came out of a simulation without training: for a person, for programs, and device by device."""

import csv
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fluffle.update import MAX_RUNS
from fluffle_cli.simulate.queueing import QueueFederation
from fluffle_cli.simulate.settings import SimulateSettings

SUMMARY: Final = "queueing.json"
DEVICES: Final = "devices.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSummary:
    """A federation without training; seconds are virtual.

    Each pair of `staleness` is a number of versions, and how many folded updates were so late.
    `version_s_*` are the seconds between one version and the next. `slowest_weight` is the part of all
    weight that the slowest tenth of the devices gave, and `silent` counts devices without a folded update.
    """

    finished: str
    seconds: float
    updates: int
    versions: int
    version_s_median: float
    version_s_most: float
    staleness: list[tuple[int, int]]
    staleness_mean: float
    staleness_95: int
    slowest_weight: float
    silent: int
    refused: Mapping[str, int]
    aborted: int
    crashes: int
    duplicates: int
    events: int


def run_queue(settings: SimulateSettings, console: Console) -> None:
    """Play a federation without training, write its folder, and tell what came out of it."""
    folder = settings.make_folder()
    if settings.clients > MAX_RUNS:
        console.print(
            f"A federation on RabbitMQ remembers {MAX_RUNS} workers, and refuses updates of further ones; "
            "here all are counted",
            markup=False,
            soft_wrap=True,
        )
    federation, began = QueueFederation(settings), time.monotonic()
    try:
        with console.status("playing the federation, without training"):
            federation.run()
    finally:
        # After Ctrl-C too: what is done is kept.
        took_s = time.monotonic() - began
        summary = summary_of(federation)
        (folder / SUMMARY).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
        _write_devices(federation, folder / DEVICES)
        for what, found in in_words(summary):
            console.print(f"{what:44} {found}", markup=False, soft_wrap=True)
        console.print(f"Device by device: {folder / DEVICES}", markup=False)
        console.print(
            f"{summary.seconds:.1f} virtual seconds took {took_s:.1f} s, "
            f"{summary.events / max(took_s, 1e-9):,.0f} events a second",
            markup=False,
        )


def summary_of(federation: QueueFederation) -> QueueSummary:
    """Sum up a federation."""
    leader, workers = federation.leader, federation.workers
    between_s = [later - one for one, later in pairwise([0.0, *federation.committed_at])]
    late = sorted(leader.staleness.items())
    weights = np.array([worker.weight for worker in workers])
    slowest = np.argsort([worker.round_s for worker in workers], kind="stable")[-max(1, len(workers) // 10) :]
    return QueueSummary(
        finished=leader.finished,
        seconds=federation.seconds,
        updates=leader.updates,
        versions=leader.version,
        version_s_median=float(np.median(between_s)) if between_s else 0.0,
        version_s_most=max(between_s, default=0.0),
        staleness=late,
        staleness_mean=sum(versions * count for versions, count in late) / max(1, leader.updates),
        staleness_95=_quantile(np.array(late, np.int64).reshape(-1, 2), 0.95),
        slowest_weight=float(weights[slowest].sum() / max(weights.sum(), 1e-300)),
        silent=sum(not worker.updates for worker in workers),
        refused=dict(leader.refused.most_common()),
        aborted=federation.aborted,
        crashes=federation.crashes,
        duplicates=federation.duplicates,
        events=federation.events,
    )


def in_words(summary: QueueSummary) -> Iterator[tuple[str, str]]:
    """Yield what is known and its value, for a person; what did not happen is left out."""
    seconds = max(summary.seconds, 1e-9)
    if summary.finished:
        yield "finished because", summary.finished
    yield "updates", f"{summary.updates} ({summary.updates / seconds:.3g} a second)"
    yield "versions", f"{summary.versions} ({summary.versions / seconds:.3g} a second)"
    yield (
        "seconds from version to version",
        f"{summary.version_s_median:.3g} in the median, {summary.version_s_most:.3g} at most",
    )
    most = max((versions for versions, _ in summary.staleness), default=0)
    yield (
        "staleness",
        f"{summary.staleness_mean:.2f} in the mean, {summary.staleness_95} (95 %), {most} at most",
    )
    yield "weight that the slowest tenth of devices gave", f"{summary.slowest_weight:.1%}"
    for reason, count in summary.refused.items():
        yield f"refused: {reason}", str(count)
    rest = {
        "devices without an update": summary.silent,
        "rounds aborted as too stale": summary.aborted,
        "rounds lost in crashes": summary.crashes,
        "updates delivered twice": summary.duplicates,
    }
    yield from ((what, str(count)) for what, count in rest.items() if count)


def _quantile(counts: NDArray[np.int64], share: float) -> int:
    """Return the value [rows, 0] that this share of the counts [rows, 1] does not exceed."""
    if not counts.size:
        return 0
    reached = np.cumsum(counts[:, 1]) >= share * counts[:, 1].sum()
    return int(counts[np.argmax(reached), 0])


def _write_devices(federation: QueueFederation, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "seconds_per_round", "updates", "mean_staleness", "weight", "rejected"])
        for one in federation.workers:
            staleness = one.staleness / one.updates if one.updates else ""
            writer.writerow([one.index, one.round_s, one.updates, staleness, one.weight, one.rejected])
