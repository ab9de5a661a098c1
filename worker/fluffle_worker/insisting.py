"""What a worker insists on before it sends anything: how private its data must stay.

With the mechanism central a worker can know what the plan says, and has to trust that the aggregator keeps to
it: its updates leave as they are. With distributed and local it computes from the plan what its own noise
protects, and adds that noise itself.
"""

from dataclasses import dataclass
from typing import Final

from fluffle.errors import ConfigError
from fluffle.privacy.promise import Mechanism
from fluffle.record import ModelVersion

# The later ones need less trust.
BY_TRUST: Final[tuple[Mechanism, ...]] = ("central", "distributed", "local")
SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Insistence:
    """The most epsilon that this worker's data may spend, at a delta, and the least of the mechanisms."""

    epsilon: float
    delta: float
    mechanism: Mechanism = "central"

    def require(self, version: ModelVersion) -> None:
        """Raise ConfigError when the plan of a version protects this worker less."""
        promised, federation = version.plan.privacy, version.federation
        wanted = f"this worker insists on an epsilon of at most {self.epsilon:g} (--dp-epsilon)"
        if promised is None:
            raise ConfigError(
                f"{wanted}, and {federation} has no differential privacy: start its aggregator with --dp, or "
                "this worker without --dp-epsilon"
            )
        if BY_TRUST.index(promised.mechanism) < BY_TRUST.index(self.mechanism):
            raise ConfigError(
                f"this worker insists on --dp {self.mechanism}, and with the mechanism {promised.mechanism} "
                f"of {federation} its updates leave with less protection: start the aggregator with --dp "
                f"{self.mechanism}, or this worker with --dp {promised.mechanism}"
            )
        spent = promised.epsilon_after(promised.updates, self.delta)
        if spent > self.epsilon * (1 + SLACK):
            raise ConfigError(
                f"{wanted}, and {promised.updates} updates for {federation} spend {spent:.3g} at a delta of "
                f"{self.delta:g}: ask for a smaller --dp-epsilon or --dp-max-updates at the aggregator"
            )
