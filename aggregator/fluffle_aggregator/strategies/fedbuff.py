"""FedBuff: a buffer of updates makes a version. Take it when workers are many or noisy."""

from dataclasses import dataclass
from typing import ClassVar

from fluffle_aggregator.sections import Weight
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.strategy import (
    EXAMPLE_WEIGHTS,
    BufferSettings,
    Discounted,
    DiscountSettings,
    Strategy,
    UpdateFacts,
)
from fluffle_aggregator.transforms import ServerOptimizerSettings


@dataclass(frozen=True, slots=True)
class DiscountedMean(Discounted):
    """s(staleness) over 1, or n * s(staleness) over max(n, n_mean) when weighed by examples.

    n_mean is the mean over all workers: a buffer of small sites alone makes a small step. The sum of the
    discounts never stands below the line: it would cancel a staleness that all updates share.
    """

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        count, discount = EXAMPLE_WEIGHTS[self.weigh_by], self.discount_of(facts)
        divisor = count(max(facts.examples, facts.mean_examples))
        return Weight(discount * count(facts.examples), divisor, discount, discount, facts.staleness)


class FedBuffSettings(DiscountSettings, BufferSettings, ServerOptimizerSettings):
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
        rule = self.make_rule()
        weigh = DiscountedMean(parse_discount(self.staleness), self.weigh_by_under(rule), self.throttle)
        optimizer = (self.make_optimizer(),)
        return Strategy(
            FedBuffSettings.named,
            weigh,
            self.updates_per_version(),
            rule,
            optimizer,
            throttles=self.throttle != 1,
            normalizes_steps=bool(self.normalize_steps),
        )
