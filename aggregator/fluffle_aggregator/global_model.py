"""The global model as the leader holds it: the last record, and the updates folded in since. Pure.

Time comes in as arguments, bytes never. The same updates in the same order give the same bits, whoever led.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fluffle.model import Vector
from fluffle.plan import Plan
from fluffle.record import MAX_NORMS, Contributor, Evaluation, Folded, ModelVersion, Moments, Rank
from fluffle.update import WeightUpdate
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.statistics import StatisticsBuffer
from fluffle_aggregator.strategies import Strategy


class GlobalModel:
    """What grows from one record to the next."""

    def __init__(
        self,
        record: ModelVersion,
        moments: Mapping[str, Vector],
        *,
        strategy: Strategy,
        plan: Plan,
        goal: Goal,
        term: int,
    ) -> None:
        """Continue from a record and the server optimizer's moments there.

        Moments that are missing, or are those of another optimizer, begin anew.
        """
        # Owned, since the strategy works in place; the record's vector may be a view of a message.
        self.vector = record.vector.copy()
        self.record = replace(record, vector=self.vector)
        self.strategy = strategy
        self.plan = plan
        self.goal = goal
        self.term = term
        self.version = record.version
        # The first leader goes on under the term of the version 0 that it made itself.
        began = () if record.term == term else (Rank(term, record.version),)
        self.terms = (*record.terms, *began)
        self.statistics = record.statistics
        self.integers = record.integers
        self.moments: Mapping[str, Vector] = (
            {name: vector.copy() for name, vector in moments.items()}
            if set(moments) == set(strategy.optimizer.starts)
            else strategy.optimizer.init(record.layout.size)
        )
        self.buffer = strategy.init()
        self.statistics_buffer = StatisticsBuffer()
        # The weight that each worker has in the buffer.
        self.in_buffer: dict[str, float] = {}
        self.applied = record.applied
        self.norms = record.norms
        self.folded: list[Folded] = []
        self.contributors = dict(record.contributors)
        self.rejected = record.rejected
        self.evaluation = record.evaluation
        self.best = record.best
        self.target_held = record.target_held

    @property
    def updates(self) -> int:
        """The number of updates applied since version 0."""
        return sum(contributor.updates for contributor in self.contributors.values())

    @property
    def steps(self) -> int:
        """The number of versions since the last record."""
        return self.version - self.record.version

    @property
    def has_another_plan(self) -> bool:
        """Whether the plan is another than the last record says, and so than the workers follow."""
        return self.plan != self.record.plan

    def staleness(self, base_version: int) -> int:
        """Return the number of versions made since a base version: 0 for a fresh update."""
        return self.version - base_version

    def fold(
        self, update: WeightUpdate, *, now: float, published_at: float = 0.0, norm: float | None = None
    ) -> Folded:
        """Take in one admitted update, and step when the strategy's buffer is full.

        `now` and `published_at` are Unix times in seconds, for people to read. `norm` is the L2 norm of
        what the update would move, for those that come later to be held against; None when no limit asks
        for it.
        """
        # τ counts from the version before this update makes a new one: a fresh update has τ = 0.
        staleness = self.staleness(update.base_version)
        weight = self.strategy.weight(staleness=staleness, examples=update.examples)
        self.buffer = self.strategy.fold(
            self.buffer, update.vector, staleness=staleness, examples=update.examples
        )
        self.statistics_buffer = self.statistics_buffer.adding(
            update.statistics, weight=weight, mixing=self.strategy.mixing_of(staleness)
        )
        self.integers = update.integers
        self.in_buffer[update.id.worker] = self.in_buffer.get(update.id.worker, 0.0) + weight
        # Nobody measures it while the limit is off: what was usual before says nothing later.
        self.norms = () if norm is None else (*self.norms, norm)[-MAX_NORMS:]
        folded = Folded(update.id, update.base_version, staleness, weight, published_at, now)
        self.folded.append(folded)
        self.applied = self.applied.adding([*update.absorbed, update.id])
        before = self.contributors.get(update.id.worker, Contributor())
        self.contributors[update.id.worker] = replace(
            before,
            updates=before.updates + 1,
            examples=before.examples + update.examples,
            staleness_sum=before.staleness_sum + staleness,
            weight_sum=before.weight_sum + weight,
            last_update_at=now,
        )
        if self.strategy.is_full(self.buffer):
            self.step()
        return folded

    def step(self) -> None:
        """Make the next version of what is in the buffer, full or not; nothing when it is empty."""
        if self.buffer.count == 0:
            return
        self.vector, self.moments = self.strategy.step(self.vector, self.buffer, self.moments)
        self.statistics = self.statistics_buffer.merged_into(self.statistics)
        self.buffer, self.statistics_buffer = self.strategy.init(), StatisticsBuffer()
        self.in_buffer.clear()
        self.version += 1

    def close(self) -> None:
        """Make the last version, even of an empty buffer: readers look for a newer one."""
        self.step()
        if not self.steps:
            self.version += 1

    def note_evaluation(self, evaluation: Evaluation) -> bool:
        """Take in what an evaluator measured; tell whether it did, which it does of newer versions alone."""
        if self.evaluation and evaluation.version <= self.evaluation.version:
            return False  # a slower evaluator, or one redelivered: the newest version counts
        self.evaluation = evaluation
        self.best = self.goal.better(self.best, evaluation)
        self.target_held = self.goal.held(self.target_held, evaluation.metrics)
        return True

    def note_refusal(self, worker: str | None) -> None:
        """Count one refused message, for its worker if that is one of the federation's."""
        self.rejected += 1
        if worker in self.contributors:
            before = self.contributors[worker]
            self.contributors[worker] = replace(before, rejected=before.rejected + 1)

    def next_moments(self) -> Moments | None:
        """Return the server optimizer's moments at the next record, None when nothing goes before it.

        A leader without moments sends empty ones before the first record of its term: they claim the term.
        If that record comes late, when another leads already, that one has seen the claim and is above it.
        """
        if not self.moments and self.record.term == self.term:
            return None
        return Moments(self.record.federation, Rank(self.term, self.version), self.moments)

    def next_record(
        self, *, parent: str, moments_checksum: int | None, elapsed_s: float, now: float, finished: str
    ) -> ModelVersion:
        """Return the record to publish; its vector is this model's own until `advance`."""
        return replace(
            self.record,
            term=self.term,
            version=self.version,
            parent=parent,
            terms=self.terms,
            plan=self.plan,
            strategy=str(self.strategy),
            vector=self.vector,
            statistics=self.statistics,
            integers=self.integers,
            applied=self.applied,
            norms=self.norms,
            folded=tuple(self.folded),
            contributors=dict(self.contributors),
            rejected=self.rejected,
            evaluation=self.evaluation,
            best=self.best,
            target_held=self.target_held,
            elapsed_s=elapsed_s,
            committed_at=now,
            finished=finished,
            moments_checksum=moments_checksum,
        )

    def advance(self, record: ModelVersion) -> None:
        """Go on from a record that is published."""
        self.record = record
        self.folded = []
