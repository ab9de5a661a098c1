"""ACE and CA2FL: a step of all workers' last updates. Take one when slow workers have data that others lack.

With FedBuff and FedAsync the model follows the workers that send most often.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field

from fluffle_aggregator.cached_buffers import Calibration, MeanOfAll
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.fedbuff import DiscountedMean
from fluffle_aggregator.strategies.strategy import (
    EXAMPLE_WEIGHTS,
    BufferSize,
    Strategy,
    UpdateFacts,
    WeighBySettings,
)
from fluffle_aggregator.transforms import ServerOptimizerSettings
from fluffle_aggregator.update_cache import Keeping


@dataclass(frozen=True, slots=True)
class ShareOfAll(DiscountedMean):
    """What DiscountedMean says, but statistics move as far as the step does: by K / n, or 1 at most.

    The statistics of a small buffer are those of one or two workers, and a step is one of all n. Weighed by
    examples, each update moves them in proportion to its own.
    """

    buffer_size: int = 1

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        count = EXAMPLE_WEIGHTS[self.weigh_by]
        # An estimate of the share of all examples, where each of n workers has the mean number.
        relative = count(facts.examples) / count(max(facts.mean_examples, 1.0))
        mixing = min(1.0, self.buffer_size * relative / facts.workers)
        return replace(DiscountedMean.__call__(self, facts), mixing=mixing)


class KeepingSettings(WeighBySettings):
    """The settings of a strategy that keeps the workers' updates."""

    cache_codec: Literal["int8", "float32"] = Field(
        "int8",
        description="How reuse, ace, ca2fl and ringleader keep each worker's last update, in memory and in a "
        "message beside each version: int8 takes one byte for each parameter and worker, float32 four. "
        "ringleader keeps up to two of each worker. A version itself takes four bytes for each parameter; "
        "with commit_every both are published less often.",
    )
    forget_after: float = Field(
        100.0,
        gt=1,
        description="When a worker is forgotten whose updates are kept: when the others have sent so many "
        "times as many updates as there are workers since its last one.",
    )

    def make_keeping(self, *, in_rounds: bool = False) -> Keeping:
        """Return how updates are kept."""
        return Keeping(self.cache_codec, self.forget_after, in_rounds)

    def make_weigh(self, buffer_size: int = 1) -> ShareOfAll:
        """Return what an update counts: stale updates count as much as fresh ones."""
        return ShareOfAll(parse_discount("constant"), self.weigh_by, buffer_size=buffer_size)


class CacheSettings(KeepingSettings, BufferSize, ServerOptimizerSettings):
    """The settings of a strategy that makes each step of a buffer and each worker's last update."""


class AceSettings(CacheSettings):
    """x <- x + eta * min(1, K / n) * (mean of the last updates of all n workers), after each K updates.

    The paper has K = 1 and leaves the step to be tuned: it is eta / n here, so that as many updates as there
    are workers make a step of eta. ACED, which leaves old updates out of the mean, is this with a small
    `forget_after`; a worker that comes again after that is new.

    Source: Chang et al., "Mitigating Participation Imbalance Bias in Asynchronous Federated Learning" (2025,
    arXiv 2511.19066), ACE and ACED.
    """

    named: ClassVar[str] = "ace"
    summary: ClassVar[str] = "a step of all workers' last updates at a time"

    def make(self) -> Strategy:
        """See StrategyKind."""
        return Strategy(
            AceSettings.named,
            self.make_weigh(self.updates_per_version()),
            self.updates_per_version(),
            transforms=(self.make_optimizer(),),
            keeping=self.make_keeping(),
            cached_rule=MeanOfAll(),
            normalizes_steps=bool(self.normalize_steps),
        )


class CalibrationSettings(CacheSettings):
    """The settings of a strategy that looks at what is new in an update, against its worker's last one."""

    calibration: float | None = Field(
        None,
        gt=0,
        le=2,
        description="q of ca2fl and reuse: how much of what is new in an update, against its worker's last "
        "one, moves the model; less damps what a single update adds. Default: 1 for ca2fl, as in the paper, "
        "and 0.5 for reuse.",
    )

    def make_calibrated(
        self, name: str, rule: Calibration, keeping: Keeping, count: int, default_rate: float = 1.0
    ) -> Strategy:
        """Return a strategy with this rule, and `count` updates in one version."""
        return Strategy(
            name,
            self.make_weigh(count),
            count,
            transforms=(self.make_optimizer(default_rate),),
            keeping=keeping,
            cached_rule=rule,
            normalizes_steps=bool(self.normalize_steps),
        )


class Ca2flSettings(CalibrationSettings):
    """x <- x + eta * min(1, K / n) * (h + (q / K) * sum of (delta_i - h_i)), over K updates of n workers.

    h_i is the last update of worker i before this one, zero if there was none, and h the mean of them over
    all workers, as it was before the buffer. Workers that have sent nothing yet are not counted in h. The
    paper leaves the step to be tuned, and K / n is a part of it here, as for ace.

    The paper has q = 1. With q = K / n the sum in parentheses is the mean after the buffer, which is ace: so
    it is while no worker joins, and no worker's weight changes.

    Source: Wang, Cao, Wu, Chen and Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning
    with Cached Update Calibration" (ICLR 2024), CA2FL.
    """

    named: ClassVar[str] = "ca2fl"
    summary: ClassVar[str] = "a buffer at a time, calibrated by all workers' last updates"

    def make(self) -> Strategy:
        """See StrategyKind."""
        share = 1.0 if self.calibration is None else self.calibration
        return self.make_calibrated(
            Ca2flSettings.named, Calibration(share), self.make_keeping(), self.updates_per_version()
        )
