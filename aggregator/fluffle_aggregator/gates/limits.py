"""All limits that an operator sets for what workers send. Pure."""

from pydantic import ConfigDict

from fluffle_aggregator.gates.history import StalenessLimit
from fluffle_aggregator.gates.norm import NormLimit
from fluffle_aggregator.gates.rates import RateLimits
from fluffle_aggregator.gates.share import ShareLimit
from fluffle_aggregator.gates.values import ExampleLimits


class UpdateLimits(StalenessLimit, ExampleLimits, NormLimit):
    """Limits on each update by itself."""


class WorkerLimits(RateLimits, ShareLimit):
    """Limits on what one worker sends in all."""


class Limits(UpdateLimits, WorkerLimits):
    """All limits on what workers send."""

    model_config = ConfigDict(extra="forbid")
