"""The global model as the leader holds it: the last record, and the updates folded in since. Pure.

Time comes in as arguments, bytes never. The same updates in the same order give the same bits, whoever led.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fluffle.fields import is_name
from fluffle.model import Vector
from fluffle.plan import Plan
from fluffle.record import (
    MAX_NORMS,
    MAX_REFUSAL_LENGTH,
    SHARE_WINDOW,
    Contributor,
    Evaluation,
    Folded,
    ModelVersion,
    Moments,
    Rank,
)
from fluffle.update import MAX_RUNS, WeightUpdate
from fluffle_aggregator.goal import Goal, not_finite_held
from fluffle_aggregator.schedules import Schedule
from fluffle_aggregator.statistics import StatisticsBuffer
from fluffle_aggregator.strategies import Strategy, UpdateFacts

CONSTANT_RATE = Schedule()


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
        schedule: Schedule = CONSTANT_RATE,
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
        self.schedule = schedule
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
        self.best_by = record.best_by
        self.target_held = record.target_held
        self.not_finite_held = record.not_finite_held
        self.plateau = record.plateau
        self.window = record.window
        self.started_s = record.started_s
        self.closing = record.closing
        self._most_examples = self._count_most_examples()
        self._examples_sum = sum(one.examples for one in self.contributors.values())
        self._contributing = sum(1 for one in self.contributors.values() if one.updates)
        # Whose refusals the next record tells of, though nothing else may be new in it.
        self.untold_refusals: set[str] = set()

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
        return self.plan != replace(self.record.plan, learning_rate_scale=1.0)

    def staleness(self, base_version: int) -> int:
        """Return the number of versions made since a base version: 0 for a fresh update."""
        return self.version - base_version

    def facts_of(self, update: WeightUpdate) -> UpdateFacts:
        """Return what the weight of an update follows from."""
        return UpdateFacts(
            self.staleness(update.base_version),
            update.examples,
            self._most_examples,
            self._examples_sum / max(1, self._contributing),
        )

    def fold(
        self,
        update: WeightUpdate,
        *,
        now: float,
        published_at: float = 0.0,
        norm: float | None = None,
        is_share_limited: bool = False,
    ) -> Folded:
        """Take in one admitted update, and step when the strategy's buffer is full.

        `now` and `published_at` are Unix times in seconds, for people to read. `norm` is the L2 norm of
        what the update would move, for those that come later to be held against; None when no limit asks
        for it. `is_share_limited` says that a worker's share of the last updates is limited (FedAsync).
        """
        # τ counts from the version before this update makes a new one: a fresh update has τ = 0.
        facts = self.facts_of(update)
        weight = self.strategy.weight_of(facts)
        self.buffer = self.strategy.fold(self.buffer, update.vector, facts)
        self.statistics_buffer = self.statistics_buffer.adding(
            update.statistics, weight=weight, mixing=self.strategy.mixing_of(facts)
        )
        self.integers = update.integers
        self.in_buffer[update.id.worker] = self.in_buffer.get(update.id.worker, 0.0) + weight
        # Nobody measures it while the limit is off: what was usual before says nothing later.
        self.norms = () if norm is None else (*self.norms, norm)[-MAX_NORMS:]
        loss = update.metrics.get("loss")
        folded = Folded(
            update.id,
            update.base_version,
            facts.staleness,
            weight,
            published_at,
            now,
            loss,
            update.train_s,
        )
        self.folded.append(folded)
        if is_share_limited:
            self.window = (*self.window, (update.id.worker, weight))[-SHARE_WINDOW:]
        self.applied = self.applied.adding([*update.absorbed, update.id])
        before = self.contributors.get(update.id.worker, Contributor())
        self.contributors[update.id.worker] = replace(
            before,
            updates=before.updates + 1,
            examples=update.examples,
            staleness_sum=before.staleness_sum + facts.staleness,
            weight_sum=before.weight_sum + weight,
            last_update_at=now,
            loss=loss,
        )
        self._examples_sum += update.examples - before.examples
        self._contributing += not before.updates
        if update.examples >= self._most_examples:
            self._most_examples = update.examples
        elif before.examples == self._most_examples:
            self._most_examples = self._count_most_examples()
        if self.strategy.is_full(self.buffer):
            self.step()
        return folded

    def _count_most_examples(self) -> int:
        return max((one.examples for one in self.contributors.values()), default=0)

    def step(self) -> None:
        """Make the next version of what is in the buffer, full or not; nothing when it is empty."""
        if self.buffer.count == 0:
            return
        self.vector, self.moments = self.strategy.step(self.vector, self.buffer, self.moments)
        self.statistics = self.statistics_buffer.merged_into(self.statistics)
        self.buffer, self.statistics_buffer = self.strategy.init(), StatisticsBuffer()
        self.in_buffer.clear()
        self.version += 1

    def make_newer(self) -> None:
        """Step, or make a version of the same values: readers look for a newer one."""
        self.step()
        if not self.steps:
            self.version += 1

    def note_evaluation(self, evaluation: Evaluation) -> bool:
        """Take in what an evaluator measured; tell whether it did, which it does of newer versions alone."""
        if self.evaluation and evaluation.version <= self.evaluation.version:
            return False  # a slower evaluator, or one redelivered: the newest version counts
        self.evaluation = evaluation
        best = self.goal.better(self.best, evaluation)
        self.plateau = self.schedule.after_evaluation(self.plateau, is_better=best is not self.best)
        self.best = best
        self.best_by = str(self.goal.yardstick(evaluation.metrics) or "") if self.best else ""
        self.target_held = self.goal.held(self.target_held, evaluation.metrics)
        self.not_finite_held = not_finite_held(self.not_finite_held, evaluation.metrics)
        return True

    def note_refusal(self, worker: str | None, why: str) -> None:
        """Count one refused message, and for its sender, if RabbitMQ has verified who that is.

        A RabbitMQ user whose name no worker may have is nobody's, and only counts in the total.

        At its first refusal, and then at powers of two, a worker is to be told: see `untold_refusals`.
        """
        self.rejected += 1
        if worker is None or not is_name(worker):
            return
        if worker not in self.contributors and len(self.contributors) >= MAX_RUNS:
            return
        before = self.contributors.get(worker, Contributor())
        rejected = before.rejected + 1
        self.contributors[worker] = replace(before, rejected=rejected, refusal=why[:MAX_REFUSAL_LENGTH])
        if rejected.bit_count() == 1:
            self.untold_refusals.add(worker)

    def note_over_share(self, worker: str) -> None:
        """Move the window of shares on by an update that was refused for its worker's share."""
        self.window = (*self.window, (worker, 0.0))[-SHARE_WINDOW:]

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
            plan=replace(self.plan, learning_rate_scale=self.schedule.scale(self.version, self.plateau)),
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
            best_by=self.best_by,
            target_held=self.target_held,
            not_finite_held=self.not_finite_held,
            plateau=self.plateau,
            window=self.window,
            elapsed_s=elapsed_s,
            started_s=self.started_s,
            committed_at=now,
            closing=self.closing,
            finished=finished,
            moments_checksum=moments_checksum,
        )

    def advance(self, record: ModelVersion) -> None:
        """Go on from a record that is published."""
        self.record = record
        self.folded = []
        self.untold_refusals.clear()
