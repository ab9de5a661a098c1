"""The course of a run: one line per version in `metrics.jsonl`, and what plots and summary read from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from fluffle.record import ModelVersion
from fluffle_aggregator.goal import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedUpdate:
    """One update in a version: whose it was, by how many versions it was late, and its weight."""

    worker: str
    staleness: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTotals:
    """What one worker has given up to a version."""

    updates: int
    examples: int
    mean_staleness: float
    weight_share: float
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One line of `metrics.jsonl`: a version, and what its record says.

    `seconds` counts from version 0, for which every worker waited: the start of the first round. The newest
    evaluation that the record knows is of `evaluated_version`, an earlier one: `metrics` belongs there.
    """

    seconds: float
    version: int
    term: int
    updates: int
    rejected: int = 0
    mean_staleness: float | None = None
    evaluated_version: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best_version: int | None = None
    target_held: int = 0
    finished: str = ""
    folded: Sequence[FoldedUpdate] = ()
    workers: Mapping[str, WorkerTotals] = field(default_factory=dict)


_ROW = TypeAdapter(VersionRow)


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluated version: when it was committed, in seconds since version 0, and its metric."""

    seconds: float
    value: float


def row_of(version: ModelVersion, *, started_at: float) -> VersionRow:
    """Return the line of a version; `started_at` is when version 0 was made, in Unix time."""
    weight = sum(one.weight_sum for one in version.contributors.values()) or 1.0
    evaluation, folded = version.evaluation, version.folded
    return VersionRow(
        seconds=round(max(0.0, version.committed_at - started_at), 3),
        version=version.version,
        term=version.term,
        updates=version.updates,
        rejected=version.rejected,
        mean_staleness=sum(one.staleness for one in folded) / len(folded) if folded else None,
        evaluated_version=evaluation.version if evaluation else None,
        metrics=dict(evaluation.metrics) if evaluation else {},
        best_version=version.best.version if version.best else None,
        target_held=version.target_held,
        finished=version.finished,
        folded=[
            FoldedUpdate(worker=one.id.worker, staleness=one.staleness, weight=one.weight) for one in folded
        ],
        workers={
            name: WorkerTotals(
                updates=one.updates,
                examples=one.examples,
                mean_staleness=one.mean_staleness,
                weight_share=one.weight_sum / weight,
                rejected=one.rejected,
            )
            for name, one in sorted(version.contributors.items())
        },
    )


def append_row(path: Path, row: VersionRow) -> None:
    """Add one line to `metrics.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> Iterator[VersionRow]:
    """Yield the lines of a `metrics.jsonl` in their order; ValueError that says what is wrong with one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield _ROW.validate_json(line)


def curve(rows: Sequence[VersionRow], metric: str) -> list[Point]:
    """Return each evaluated version at the time at which it was committed, in the order of versions."""
    committed = {row.version: row.seconds for row in rows}
    values = {row.evaluated_version: row.metrics[metric] for row in rows if metric in row.metrics}
    return [
        Point(committed[version], value)
        for version, value in sorted(values.items(), key=lambda item: item[0] or 0)
        if version in committed
    ]


def seconds_to_target(rows: Sequence[VersionRow], target: Target) -> float | None:
    """Return when the first version was committed from which on the target held; None when it did not."""
    reached: float | None = None
    for point in curve(rows, target.metric):
        if not target.is_met({target.metric: point.value}):
            reached = None
        elif reached is None:
            reached = point.seconds
    return reached
