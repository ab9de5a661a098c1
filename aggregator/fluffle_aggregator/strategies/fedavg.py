"""FedAvg: synchronous rounds of a whole cohort. Take it only to compare: everybody waits for the slowest."""

from dataclasses import dataclass
from typing import ClassVar

from fluffle_aggregator.sections import Weight
from fluffle_aggregator.strategies.strategy import BufferSettings, Strategy, StrategyKind, UpdateFacts
from fluffle_aggregator.transforms import ServerOptimizerSettings


@dataclass(frozen=True, slots=True)
class CohortMean:
    """n over n, for updates that started from this very version."""

    def __str__(self) -> str:
        return ""

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts; raises ValueError when it started from another version."""
        if facts.staleness != 0:
            raise ValueError(f"fedavg takes fresh updates only, not of staleness {facts.staleness}")
        return Weight(float(facts.examples), float(facts.examples), discount=1.0, mixing=1.0)


class FedAvgSettings(StrategyKind, BufferSettings, ServerOptimizerSettings):
    """x <- x + (sum of n_k * delta_k) / (sum of n_k), over a cohort of `buffer_size` updates of one version.

    With deltas against one base this is the mean of the clients' models, weighted by examples. Any server
    optimizer may take the place of the plain sum (FedAvgM, FedAdam and so on).

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017,
    arXiv 1602.05629), Algorithm 1.
    """

    named: ClassVar[str] = "fedavg"
    summary: ClassVar[str] = "in synchronous rounds"
    is_synchronous: ClassVar[bool] = True

    def make(self) -> Strategy:
        """See StrategyKind."""
        return Strategy(
            FedAvgSettings.named,
            CohortMean(),
            self.updates_per_version(),
            self.make_rule(),
            (self.make_optimizer(),),
            one_update_per_version=True,
            normalizes_steps=bool(self.normalize_steps),
        )
