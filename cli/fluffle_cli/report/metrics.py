"""The course of a run: one line per version in `metrics.jsonl`, and what plots and summary read from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from fluffle.record import ModelVersion
from fluffle_aggregator.goal import Target
from fluffle_cli.history import EvaluatedVersion, History
from fluffle_cli.plain_json import as_text
from fluffle_cli.standing import Standing
from fluffle_cli.workers import WorkerFacts, facts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedUpdate:
    """One update in a version: whose it was, by how many versions it was late, and its weight.

    `loss` is the worker's training loss, None where nobody knows, and `train_s` how long its round took.
    """

    worker: str
    staleness: int
    weight: float
    run: str = ""
    loss: float | None = None
    train_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One line of `metrics.jsonl`: a version, and what its record says.

    `seconds` counts from the start of the first round: in a demo that is version 0, for which every worker
    waited. The newest evaluation that the record knows is of `evaluated_version`, an earlier one: `metrics`
    belongs there. With `takes_rounds` each version waits for all workers.
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
    best_metrics: Mapping[str, float] = field(default_factory=dict)
    best_by: str = ""
    takes_rounds: bool = False
    target_held: int = 0
    finished: str = ""
    folded: Sequence[FoldedUpdate] = ()
    workers: Mapping[str, WorkerFacts] = field(default_factory=dict)


_ROW = TypeAdapter(VersionRow)


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluated version: when it was committed, in seconds since the first round began, and its metric."""

    seconds: float
    value: float


def row_of(version: ModelVersion, *, started_at: float) -> VersionRow:
    """Return the line of a version; `started_at` is when the first round began, in Unix time."""
    evaluation, best, folded = version.evaluation, version.best, version.folded
    return VersionRow(
        seconds=round(max(0.0, version.committed_at - started_at), 3),
        version=version.version,
        term=version.term,
        updates=version.updates,
        rejected=version.rejected,
        mean_staleness=sum(one.staleness for one in folded) / len(folded) if folded else None,
        evaluated_version=evaluation.version if evaluation else None,
        metrics=dict(evaluation.metrics) if evaluation else {},
        best_version=best.version if best else None,
        best_metrics=dict(best.metrics) if best else {},
        best_by=version.best_by,
        takes_rounds=version.plan.one_update_per_version,
        target_held=version.target_held,
        finished=version.finished,
        folded=[
            FoldedUpdate(
                worker=one.id.worker,
                run=one.id.run,
                staleness=one.staleness,
                weight=one.weight,
                loss=one.loss,
                train_s=one.train_s,
            )
            for one in folded
        ],
        workers=facts_of(version.contributors, now=version.committed_at),
    )


def first_round_at(version: ModelVersion) -> float | None:
    """Return when the earliest round in a version began, in Unix time; None when it has none.

    By the clocks of the workers, where these tell when their updates were published.
    """
    begins = [at - one.train_s for one in version.folded if (at := one.published_at or one.received_at) > 0]
    return min(begins, default=None)


def append_row(path: Path, row: VersionRow) -> None:
    """Add one line to `metrics.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(as_text(asdict(row)) + "\n")


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


def best_point(rows: Sequence[VersionRow], metric: str) -> Point | None:
    """Return the best version in a curve; None when nothing is best, or it is not in the curve."""
    best = rows[-1].best_version
    when = [row.seconds for row in rows if row.version == best]
    value = rows[-1].best_metrics.get(metric)
    return Point(when[0], value) if when and value is not None else None


def standing_of(rows: Sequence[VersionRow]) -> Standing:
    """Return what a run is judged by, from its versions, of which there is at least one."""
    history, last = History(), rows[-1]
    for row in rows:
        history.note_seconds(row.version, row.seconds)
        if row.evaluated_version is not None:
            history.note_evaluation(row.evaluated_version, row.metrics)
        for one in row.folded:
            history.note_round(one.worker, one.run, one.loss, one.train_s)
    return Standing(
        is_over=bool(last.finished),
        version=last.version,
        updates=last.updates,
        workers=last.workers,
        evaluation=_evaluated(last.evaluated_version, last.metrics, history),
        best=_evaluated(last.best_version, last.best_metrics, history),
        best_by=last.best_by,
        history=history,
        training_s=last.seconds,
        takes_rounds=last.takes_rounds,
    )


def seconds_to_target(rows: Sequence[VersionRow], target: Target) -> float | None:
    """Return when the first version was committed from which on the target held; None when it did not."""
    reached: float | None = None
    for point in curve(rows, target.metric):
        if not target.is_met({target.metric: point.value}):
            reached = None
        elif reached is None:
            reached = point.seconds
    return reached


def _evaluated(
    version: int | None, metrics: Mapping[str, float], history: History
) -> EvaluatedVersion | None:
    if version is None:
        return None
    return EvaluatedVersion(version, history.seconds_of(version) or 0.0, metrics)
