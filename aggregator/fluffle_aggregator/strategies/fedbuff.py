"""FedBuff: a buffer of updates makes a version. Take it when workers are many or noisy."""

from dataclasses import dataclass
from typing import ClassVar

from fluffle.errors import ConfigError
from fluffle_aggregator.accumulators import Weight
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.strategy import (
    EXAMPLE_WEIGHTS,
    BufferSettings,
    Discounted,
    DiscountSettings,
    Strategy,
    UpdateFacts,
)


@dataclass(frozen=True, slots=True)
class DiscountedMean(Discounted):
    """s(staleness) over 1, or n * s(staleness) over max(n, n_mean) when weighed by examples.

    n_mean is the mean over all workers: a buffer of small sites alone makes a small step. The sum of the
    discounts never stands below the line: it would cancel a staleness that all updates share.
    """

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        count, discount = EXAMPLE_WEIGHTS[self.weigh_by], self.discount(facts.staleness)
        divisor = count(max(facts.examples, facts.mean_examples))
        return Weight(discount * count(facts.examples), divisor, discount, mixing=discount)


class FedBuffSettings(DiscountSettings, BufferSettings):
    """x <- x + eta * (1 / K) * sum of s(staleness_i) * delta_i, over the K updates in the buffer.

    A buffer that does not fill is divided by what it holds. Any server optimizer may take the place of the
    learning rate eta.

    Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022, arXiv
    2106.06639), Algorithm 1.
    """

    named: ClassVar[str] = "fedbuff"
    summary: ClassVar[str] = "a buffer of updates at a time"

    def make(self) -> Strategy:
        """See StrategyKind."""
        rule, weigh_by = self.make_rule(), self.weigh_by
        if rule.holds_vectors:
            if weigh_by not in ("none", FedBuffSettings.model_fields["weigh_by"].default):
                raise ConfigError(
                    f"weigh_by {weigh_by} has no effect with rule {rule}, which counts each update alike: "
                    "leave it out"
                )
            weigh_by = "none"
        weigh = DiscountedMean(parse_discount(self.staleness), weigh_by)
        return Strategy(FedBuffSettings.named, weigh, self.buffer_size, rule, (self.make_optimizer(),))
