"""The newest record as far as it was read, brought up to date by what the leader tells. Pure.

A record may have hundreds of megabytes, and events are small but may be lost. So a reader reads a record now
and then, and between two of them believes the events; the next record puts right whatever they got wrong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fluffle.events import AFTER_THE_END, Applied, Committed, Evaluated, Rejected, TookOver
from fluffle.record import MAX_REFUSAL_LENGTH, Contributor, Evaluation, ModelVersion, Rank

# Of one buffer. Whoever buffers more sees the rest with the next record.
MOST_PENDING: Final = 20_000
MOST_EVALUATIONS: Final = 256


def without_weights(version: ModelVersion) -> ModelVersion:
    """Return what is worth keeping of a version that is only looked at; it counts the same parameters."""
    return replace(version.without_weights(), folded=(), norms=())


class Known:
    """What a federation has come to, in the words of its record; None before the first."""

    def __init__(self) -> None:
        self._record: ModelVersion | None = None
        self._contributors: dict[str, Contributor] = {}
        # Folded or refused since the last commit that was heard of: a leader that dies takes them back.
        self._pending: list[tuple[float, Applied | Rejected]] = []
        self._evaluation: Evaluation | None = None
        self._evaluations: dict[int, Evaluation] = {}
        # Something happened that a record would tell better.
        self.is_behind = True

    @property
    def record(self) -> ModelVersion | None:
        """The record without its vector, with everything in it that was committed since."""
        return replace(self._record, contributors=self._contributors) if self._record else None

    def read(self, version: ModelVersion) -> None:
        """Take in a record from the stream, unless something newer is known."""
        if self._record is not None and version.rank < self._record.rank:
            return
        if self._record is not None and version.rank > self._record.rank:
            # Its commit was not heard of; what was told before it is in it.
            self._pending.clear()
        self._record = without_weights(version)
        self._contributors = dict(version.contributors)
        for evaluation in (version.evaluation, version.best):
            self._note(evaluation)
        self.is_behind = False

    def applied(self, event: Applied, at: float) -> None:
        """Take in that the leader has folded an update."""
        if len(self._pending) < MOST_PENDING:
            self._pending.append((at, event))

    def rejected(self, event: Rejected, at: float) -> None:
        """Take in that the leader has refused one; what came after the end is not counted."""
        if event.reason != AFTER_THE_END and len(self._pending) < MOST_PENDING:
            self._pending.append((at, event))

    def evaluated(self, event: Evaluated, federation: str) -> None:
        """Take in an evaluation; it is in the next record."""
        self._evaluation = Evaluation(federation, event.evaluator, event.version, dict(event.metrics))
        self._note(self._evaluation)

    def took_over(self, event: TookOver) -> None:
        """Take in that another leads: what the last one had not committed comes again."""
        if self._record is None or event.term > self._record.term:
            self._pending.clear()
        self.is_behind = True

    def committed(self, event: Committed) -> None:
        """Take in that there is a new version."""
        self.is_behind = True
        rank, record = Rank(event.term, event.version), self._record
        if record is None or rank <= record.rank:
            # It was read before it was heard of, or comes from a leader that has lost the lead.
            self._pending.clear()
            return
        for at, one in self._pending:
            self._count(one, at)
        self._pending.clear()
        self._record = replace(
            record,
            version=event.version,
            term=event.term,
            rejected=event.rejected,
            evaluation=self._evaluation or record.evaluation,
            best=self._evaluations.get(event.best_version, record.best),
            target_held=event.target_held,
            elapsed_s=event.elapsed_s,
            finished=event.finished,
            best_by=event.best_by,
            started_s=event.started_s,
            closing=event.closing,
        )
        self._evaluation = None

    def _count(self, event: Applied | Rejected, at: float) -> None:
        worker = event.worker if isinstance(event, Rejected) else worker_of(event.update)
        before = self._contributors.get(worker, Contributor())
        if isinstance(event, Rejected):
            if worker:
                refusal = f"{event.reason}: {event.detail}"[:MAX_REFUSAL_LENGTH]
                self._contributors[worker] = replace(before, rejected=before.rejected + 1, refusal=refusal)
            return
        self._contributors[worker] = replace(
            before,
            updates=before.updates + 1,
            examples=event.examples,
            staleness_sum=before.staleness_sum + event.staleness,
            weight_sum=before.weight_sum + event.weight,
            last_update_at=at,
        )

    def _note(self, evaluation: Evaluation | None) -> None:
        if evaluation is None:
            return
        self._evaluations[evaluation.version] = evaluation
        best = self._record.best if self._record else None
        while len(self._evaluations) > MOST_EVALUATIONS:
            oldest = next(iter(self._evaluations))
            kept = self._evaluations.pop(oldest)
            if best and oldest == best.version:
                self._evaluations[oldest] = kept


def worker_of(update: str) -> str:
    """Return the worker in an update's id, `worker/run/sequence`."""
    return update.partition("/")[0]
