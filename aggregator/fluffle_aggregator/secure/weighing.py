"""How updates weigh under secure aggregation: by integers that everybody can compute. Pure."""

from dataclasses import dataclass, replace

from fluffle.secure.plan import SecurePlan
from fluffle.secure.weights import factor_of
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """The discount of `factor_of`, as a share of the weight of a fresh update; examples do not count."""

    greatest: int

    def __str__(self) -> str:
        return f"discount=integer:{self.greatest}, weigh_by=none"

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        return self.of(facts.staleness)

    def of(self, staleness: int) -> Weight:
        """Return what an update counts that is so many versions late."""
        discount = factor_of(staleness, self.greatest) / self.greatest
        return Weight(discount, 1.0, discount, discount, staleness)


def secured(strategy: Strategy, plan: SecurePlan | None) -> Strategy:
    """Return a strategy that weighs as secure aggregation needs, if the plan asks for that."""
    return strategy if plan is None else replace(strategy, weigh=IntegerWeights(plan.greatest))
