"""FedAsync: each update makes a version. Take it when workers are few and each should show at once."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from fluffle_aggregator.sections import Weight
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.strategy import (
    EXAMPLE_WEIGHTS,
    Discounted,
    DiscountSettings,
    Strategy,
    UpdateFacts,
)


@dataclass(frozen=True, slots=True)
class MixingWeight(Discounted):
    """a = alpha * s(staleness), or alpha * s(staleness) * n / n_max when weighed by examples.

    n_max are the most examples that any worker has: the largest site mixes in as in the paper, a smaller one
    less.
    """

    mixing: float = 0.6

    def __str__(self) -> str:
        return f"mixing={self.mixing:g}, {Discounted.__str__(self)}"

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        count, discount = EXAMPLE_WEIGHTS[self.weigh_by], self.discount_of(facts)
        a = self.mixing * discount * count(facts.examples) / count(max(facts.examples, facts.most_examples))
        return Weight(a, divisor=1.0, discount=discount, mixing=a)


class FedAsyncSettings(DiscountSettings):
    """x <- (1 - a) * x + a * x_client, for each update by itself.

    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019, arXiv 1903.03934),
    Algorithm 1.
    """

    named: ClassVar[str] = "fedasync"
    summary: ClassVar[str] = "each update by itself"

    mixing: float = Field(0.6, gt=0, le=1, description="Mixing weight alpha of fedasync.")

    def make(self) -> Strategy:
        """See StrategyKind."""
        weigh = MixingWeight(parse_discount(self.staleness), self.weigh_by, self.throttle, self.mixing)
        return Strategy(FedAsyncSettings.named, weigh, sends="weights", throttles=self.throttle != 1)
