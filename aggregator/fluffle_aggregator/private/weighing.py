"""How updates weigh with differential privacy: by their staleness alone, and never more than 1. Pure."""

from dataclasses import dataclass, replace

from fluffle.privacy.promise import Mechanism
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.strategies.fedbuff import DiscountedMean
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts


@dataclass(frozen=True, slots=True)
class CountAlike:
    """Each update counts 1, however many examples it is from."""

    def __str__(self) -> str:
        return "weigh_by=none"

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        return Weight(1.0, 1.0, 1.0, 1.0, facts.staleness)


def private(strategy: Strategy, mechanism: Mechanism = "central") -> Strategy:
    """Return a strategy whose weights tell nothing of what an update was trained on.

    Where each update has all its noise, any weight may follow from it, and from what is public: no update
    says how many examples it has.
    """
    weigh = strategy.weigh
    if mechanism == "local" and not isinstance(weigh, DiscountedMean):
        return replace(strategy, is_private=True)
    if isinstance(weigh, DiscountedMean):
        return replace(strategy, weigh=replace(weigh, weigh_by="none"), is_private=True)
    return replace(strategy, weigh=CountAlike(), is_private=True)
