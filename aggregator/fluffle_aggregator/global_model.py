"""The global model as the leader holds it: the last record, and the updates folded in since. Pure.

Time comes in as arguments, bytes never. The same updates in the same order give the same bits, whoever led.
"""

from dataclasses import replace
from functools import partial

from fluffle.model import no_values
from fluffle.plan import Plan
from fluffle.record import (
    MAX_NORMS,
    SHARE_WINDOW,
    Evaluation,
    Folded,
    ModelVersion,
    MomentsRecord,
    Rank,
)
from fluffle.update import WeightUpdate
from fluffle.vector_math import cosine
from fluffle_aggregator.accumulators import Accumulator, RunningSum
from fluffle_aggregator.averaging import decay_at, move_average
from fluffle_aggregator.cached_buffers import CachedBuffer
from fluffle_aggregator.contributors import Contributors
from fluffle_aggregator.folding import folded_of
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.judging import compare_as_whole, judged, sites_decide
from fluffle_aggregator.private.sums import PrivateSums
from fluffle_aggregator.schedules import Schedule
from fluffle_aggregator.sealed.sealed_model import SealedModel
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.secure.state import SecureState
from fluffle_aggregator.site_reports import SiteReports
from fluffle_aggregator.statistics import StatisticsBuffer
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts
from fluffle_aggregator.survey import NO_AIM, SurveyAim, open_survey, with_survey
from fluffle_aggregator.throttle import repeats
from fluffle_aggregator.untold import Forgotten, LeftOut

CONSTANT_RATE = Schedule()


class GlobalModel:
    """What grows from one record to the next.

    `record` is the newest published version, and `draft` the next one but for what each update changes.
    """

    def __init__(
        self,
        record: ModelVersion,
        moments: MomentsRecord | None = None,
        *,
        strategy: Strategy,
        plan: Plan,
        goal: Goal,
        term: int,
        schedule: Schedule = CONSTANT_RATE,
        cached_bytes: int | None = None,
        average_decay: float = 0.0,
        survey_aim: SurveyAim = NO_AIM,
        secure: SecureState | None = None,
        private: PrivateSums | None = None,
        sealed: SealedModel | None = None,
    ) -> None:
        """Continue from a record and the strategy's moments there.

        Moments that are missing, or of another strategy or optimizer, begin anew. So does a missing average,
        from the record's own vector, unless `average_decay` is 0: then there is none. `cached_bytes` is the
        room for the updates that a strategy keeps; None means no limit. `survey_aim` says when a survey ends.
        """
        # Owned, since steps work in place; the record's vector may be a view of a message.
        self.vector = record.vector.copy()
        self.record = replace(record, vector=self.vector)
        self.average = no_values()
        if average_decay:
            self.average = (record.average if record.average_decay else record.vector).copy()
        self.strategy = strategy
        self.plan = plan
        self.goal = goal
        self.schedule = schedule
        self.term = term
        self.version = record.version
        # The first leader goes on under the term of the version 0 that it made itself.
        began = () if record.term == term else (Rank(term, record.version),)
        self.terms = (*record.terms, *began)
        self.draft = replace(
            self.record,
            term=term,
            terms=self.terms,
            strategy=str(strategy),
            average=self.average,
            average_decay=average_decay,
            unmasked_runs=secure.unmasked_runs if secure else 0,
        )
        self.survey_aim = survey_aim
        anew = bool(secure and secure.asks_again(record))
        self.survey = open_survey(record, moments, survey_aim, begins_anew=anew)
        self.statistics, self.integers = record.statistics, record.integers
        size = record.layout.size
        kept = moments if moments and strategy.fits(moments, size) else None
        # Whether the strategy does not go on with the moments that were found.
        self.begins_anew = kept is None and moments is not None and not moments.is_empty
        self.moments = strategy.moments_from(kept, size)
        self.cache = strategy.make_cache(size, kept.cached if kept else (), cached_bytes)
        # The weight that each worker has in the accumulator.
        self.in_buffer: dict[str, float] = {}
        self.applied = record.applied
        self.norms, self.window = record.norms, record.window
        self.folded: list[Folded] = []
        self.contributors = Contributors(
            record.contributors, keeps_last=bool(strategy.keeping), tells_each=private is not None
        )
        self.sites = SiteReports(record)
        # The number of updates applied since version 0.
        self.updates = record.updates
        self.secure, self.private, self.sealed = secure, private, sealed
        self.accumulator = self._empty_buffer()
        self._statistics = self.no_statistics()
        self.left_out, self.forgotten = LeftOut(), Forgotten()

    def _empty_buffer(self) -> Accumulator | CachedBuffer:
        if self.sealed:
            return self.sealed.empty_buffer()
        added = self.private.added if self.private else None
        return added.empty_buffer() if added else self.strategy.empty_buffer(self.cache)

    def no_statistics(self) -> StatisticsBuffer:
        """Return a buffer without statistics."""
        return StatisticsBuffer(self.record.layout.statistics_size, self.strategy.rule.reduce)

    @property
    def steps(self) -> int:
        """The number of versions since the last record."""
        return self.version - self.record.version

    @property
    def over(self) -> str:
        """Why no more updates are taken; empty while they are."""
        return self.draft.finished or self.draft.closing

    def why_over(self, *, is_quiet: bool) -> str:
        """Return why no update can follow; empty while one can. `is_quiet` says that none waits."""
        if self.sealed and self.sealed.why_over:
            return self.sealed.why_over
        return self.private.why_over if self.private and is_quiet else ""

    @property
    def has_another_plan(self) -> bool:
        """Whether the plan differs from the last record's, which the workers follow."""
        return self.plan != replace(self.record.plan, learning_rate_scale=1.0)

    @property
    def has_news(self) -> bool:
        """Whether the workers should learn at once what this leader has changed: the plan, or the survey."""
        return self.has_another_plan or bool(self.survey and self.survey.has_changed)

    def staleness(self, base_version: int) -> int:
        """Return the number of versions made since a base version: 0 for a fresh update."""
        return self.version - base_version

    def share(self, update: WeightUpdate) -> float:
        """Return which share of the trained parameters an admitted update has, in (0, 1]."""
        return update.vector.tail.size / self.record.layout.size

    def weigh(self, update: WeightUpdate) -> Weight:
        """Return what an update counts if it is folded now."""
        direction, start = self.moments.get(self.strategy.direction), update.vector.start
        weight = self.strategy.weigh(
            UpdateFacts(
                self.staleness(update.base_version),
                # Of an update that does not say how many it has, the weight follows from its staleness alone.
                update.examples or 1,
                self.contributors.most_examples,
                self.contributors.mean_examples,
                repeats(update.id.worker, self.window) if self.strategy.throttles else 0,
                self.contributors.count_with(update.id.worker),
                1.0 if direction is None else cosine(update.vector.tail.blocks(), direction[start:]),
            )
        )
        return replace(weight, scale=self.scale_of(update)) if self.strategy.normalizes_steps else weight

    def scale_of(self, update: WeightUpdate) -> float:
        """Return what an update's vector is multiplied by to be that of the usual number of local steps."""
        if not self.strategy.normalizes_steps:
            return 1.0
        return self.contributors.usual_steps.scale(update.local_work)

    def fold(
        self,
        update: WeightUpdate,
        *,
        now: float,
        published_at: float = 0.0,
        norm: float | None = None,
        is_share_limited: bool = False,
    ) -> Folded:
        """Take in one admitted update, and step when the buffer is full.

        `now` and `published_at` are Unix times in seconds, for people to read. `norm` is the L2 norm of
        what the update would move, for later updates to be compared with; None while norms are not limited.
        `is_share_limited` says that a worker's share of the last updates is limited (FedAsync).
        """
        # τ counts from the version before this update makes a new one: a fresh update has τ = 0.
        weight, worker = self.weigh(update), update.id.worker
        self.in_buffer[worker] = self.in_buffer.get(worker, 0.0) + weight.factor
        if self.secure:
            # The model learns of it when its sum is opened.
            self.secure.buffer.add(
                update, self.secure.factor(weight.factor), now=now, published_at=published_at
            )
            staleness = self.staleness(update.base_version)
            return folded_of(update, weight.factor, staleness, now=now, published_at=published_at, share=1.0)
        if isinstance(self.accumulator, CachedBuffer):
            self.accumulator = self.accumulator.adding_from(worker, update.vector, weight, self.updates + 1)
        else:
            self.accumulator = self.accumulator.adding(update.vector, weight)
        self._statistics = self._statistics.adding(update.statistics, weight)
        self.integers = self.integers[: len(self.integers) - len(update.integers)] + update.integers
        # Forgotten while the limit is off: what was usual before says nothing later.
        self.norms = () if norm is None else (*self.norms, norm)[-MAX_NORMS:]
        if is_share_limited or self.strategy.throttles:
            self.window = (*self.window, (worker, weight.factor))[-SHARE_WINDOW:]
        share = self.share(update)
        folded = self.note_folded(update, weight, now=now, published_at=published_at, share=share)
        if self.accumulator.totals.count >= self.strategy.buffer_size:
            self.step()
        return folded

    def note_folded(
        self, update: WeightUpdate, weight: Weight, *, now: float, published_at: float, share: float
    ) -> Folded:
        """Let the next record say that it contains an update."""
        staleness, times = self.staleness(update.base_version), {"now": now, "published_at": published_at}
        folded = folded_of(update, weight.factor, staleness, **times, share=share)
        self.folded.append(folded)
        self.applied = self.applied.adding([*update.absorbed, update.id])
        self.updates += 1
        self.contributors.note_update(update, folded)
        if self.private:
            self.private.note_folded(update.id.worker, update.released)
        return folded

    def refresh(self, update: WeightUpdate) -> None:
        """Take in an admitted refresh of the sealed sum, which the next record contains."""
        if self.sealed:
            self.sealed.refresh(update)
            self.applied = self.applied.adding([update.id])

    def step_with(self, total: RunningSum, statistics: StatisticsBuffer) -> None:
        """Make the next version of these sums."""
        self.accumulator, self._statistics = total, statistics
        self.step()

    def step(self) -> None:
        """Make the next version of what is in the buffer, full or not; nothing when it is empty."""
        if self.accumulator.totals.count == 0:
            return
        self.left_out.note(self.accumulator)
        if self.sealed:
            self.sealed.add(self.accumulator, self.version + 1, list(self.in_buffer))
        if self.private:
            self.private.note_sum(self.accumulator, Rank(self.term, self.version + 1), self.in_buffer)
        self.strategy.step(self.vector, self.accumulator, self.moments)
        self.statistics = self._statistics.merged_into(self.statistics)
        self.accumulator = self._empty_buffer()
        self._statistics = self.no_statistics()
        self.in_buffer.clear()
        if decay := self.draft.average_decay:
            move_average(self.average, self.vector, decay_at(decay, self.version))
        self.version += 1

    def make_newer(self) -> None:
        """Step, or make a version of the same values: readers look for a newer one."""
        self.step()
        if not self.steps:
            self.version += 1
            if self.sealed:
                self.sealed.ask_when_due(self.version, list(self.contributors))

    def note_evaluation(self, evaluation: Evaluation) -> bool:
        """Take in an evaluator's report, and return whether it counts: only newer versions' do."""
        before = self.draft
        if before.evaluation and evaluation.version <= before.evaluation.version:
            return False
        self.draft = replace(before, evaluation=evaluation)
        if not sites_decide(self.goal, self.draft):
            self.draft = judged(
                self.draft,
                evaluation,
                self.goal,
                self.schedule,
                compare_as_whole(before, evaluation, self.goal),
            )
        return True

    def note_site_evaluation(self, evaluation: Evaluation, *, is_last: bool = False) -> None:
        """Take in an evaluation by all sites, or by those that have evaluated the last version."""
        self.draft = replace(self.draft, site_evaluation=evaluation)
        if sites_decide(self.goal, self.draft):
            target, least = self.goal.target, evaluation.version if is_last else 0
            compare = compare_as_whole if self.secure else partial(self.sites.compare, least_version=least)
            self.draft = judged(
                self.draft,
                evaluation,
                self.goal,
                self.schedule,
                compare(self.draft, evaluation, self.goal),
                is_missed=bool(target and self.sites.without(target.metric)),
            )

    def note_refusal(self, worker: str | None, why: str) -> None:
        """Count one refused message, and for its sender too; see `Contributors.note_refusal`."""
        self.draft = replace(self.draft, rejected=self.draft.rejected + 1)
        self.contributors.note_refusal(worker, why)

    def note_over_share(self, worker: str) -> None:
        """Move the window of shares on by an update that was refused for its worker's share."""
        self.window = (*self.window, (worker, 0.0))[-SHARE_WINDOW:]

    def note_start(self, elapsed_s: float) -> None:
        """Note when the first update came: the seconds in which the federation had a leader."""
        if self.draft.started_s is None:
            self.draft = replace(self.draft, started_s=elapsed_s)

    def close_survey(self) -> list[str]:
        """Let the next record have the survey's result; return what does not fit it, in words."""
        survey = self.survey.closed() if self.survey else None
        self.survey, self.draft = None, replace(self.draft, survey=survey)
        if survey is None or survey.result is None:
            return []
        self.statistics, unfit = with_survey(self.record.layout, self.statistics, survey.result)
        return unfit

    def close(self, reason: str) -> None:
        """Take no more updates: the next record says that the last model waits for its evaluation."""
        self.draft = replace(self.draft, closing=reason)

    def finish(self, reason: str) -> None:
        """Let the next record be the last."""
        self.draft = replace(self.draft, finished=reason)

    def next_moments(self) -> MomentsRecord | None:
        """Return the moments at the next record, None when nothing goes before it.

        A leader without moments sends empty ones before the first record of its term: they claim the term.
        If that record comes late, when another leads already, that one has seen the claim and is above it.
        """
        moments = self.moments_at(Rank(self.term, self.version))
        return None if moments.is_empty and self.record.term == self.term else moments

    def moments_at(self, rank: Rank) -> MomentsRecord:
        """Return the moments as they are now, under this rank; their vectors are this model's own."""
        cached = () if self.cache is None else self.cache.kept()
        sums = b""
        if self.survey:
            sums = self.survey.committed if rank == self.record.rank else self.survey.packed()
        return MomentsRecord(self.record.federation, rank, self.moments, cached, sums)

    def next_record(
        self, *, now: float, parent: str = "", moments_checksum: int | None = None, elapsed_s: float = 0.0
    ) -> ModelVersion:
        """Return the record to publish; its vectors are this model's own until `advance`."""
        scale = self.schedule.scale(self.version, self.draft.plateau)
        is_scaled = scale != self.plan.learning_rate_scale
        return replace(
            self.draft,
            version=self.version,
            parent=parent,
            plan=replace(self.plan, learning_rate_scale=scale) if is_scaled else self.plan,
            statistics=self.statistics,
            integers=self.integers,
            applied=self.applied,
            norms=self.norms,
            window=self.window,
            folded=tuple(self.folded),
            contributors=dict(self.contributors),
            sites=dict(self.sites.reports),
            site_reports=self.sites.fresh,
            elapsed_s=elapsed_s,
            committed_at=now,
            moments_checksum=moments_checksum,
            survey=self.survey.state if self.survey else self.draft.survey,
            last_sum=self.secure.last_sum if self.secure else self.draft.last_sum,
            given_up=self.secure.given_up if self.secure else self.draft.given_up,
            privacy=self.private.state if self.private else None,
            sealed=self.sealed.state if self.sealed else None,
            sealed_sum=self.sealed.packed if self.sealed else b"",
        )

    def advance(self, record: ModelVersion) -> None:
        """Go on from a record that is published."""
        self.record = record
        if self.survey:
            self.survey.advance()
        self.folded = []
        self.contributors.untold_refusals.clear()
