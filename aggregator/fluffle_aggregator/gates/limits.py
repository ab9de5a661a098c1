"""The gates that each update passes, in their order, and all limits that an operator sets for them. Pure.

A limit that is not set has no gate, and costs nothing. Each module has a gate, its settings and its reasons.
"""

from typing import Final

from pydantic import ConfigDict

from fluffle.errors import ConfigError
from fluffle.topology import Topology
from fluffle_aggregator.gates.fitting import DUPLICATE, NOT_REGISTERED, fits_the_model
from fluffle_aggregator.gates.gate import Gate
from fluffle_aggregator.gates.history import SECOND_IN_ROUND, StalenessLimit, has_a_known_base, is_new
from fluffle_aggregator.gates.norm import NormLimit, within_norm
from fluffle_aggregator.gates.privacy import BUDGET_SPENT, TOO_SOON, within_privacy_budget
from fluffle_aggregator.gates.rates import RateLimits
from fluffle_aggregator.gates.sealing import within_sealed_range
from fluffle_aggregator.gates.sender import FOREIGN_SENDER, from_its_worker
from fluffle_aggregator.gates.share import (
    ShareLimit,
    within_share_of_the_buffer,
    within_share_of_the_last_updates,
)
from fluffle_aggregator.gates.values import ExampleLimits, has_sound_values
from fluffle_aggregator.strategies.strategy import Strategy

# Refused for these reasons, an update is not missed: its worker has no part in the round, or has given it.
NOT_MISSED: Final = frozenset(
    {DUPLICATE, SECOND_IN_ROUND, NOT_REGISTERED, FOREIGN_SENDER, TOO_SOON, BUDGET_SPENT}
)


# In two steps, since pydantic's plugin for mypy fails on a class of five bases that is a base itself.
class UpdateLimits(StalenessLimit, ExampleLimits, NormLimit):
    """Limits on each update by itself."""


class WorkerLimits(RateLimits, ShareLimit):
    """Limits on what one worker sends in all."""


class Limits(UpdateLimits, WorkerLimits):
    """All limits on what workers send."""

    model_config = ConfigDict(extra="forbid")


def gates_of(limits: Limits, strategy: Strategy, topology: Topology) -> tuple[Gate, ...]:
    """Return the gates for updates, in the order in which they are passed.

    Raises ConfigError when a limit has no effect.
    """
    if limits.on_large_norm == "clip" and limits.limit_norm is None:
        raise ConfigError("on_large_norm clip needs limit_norm, such as 10")
    gates = [
        from_its_worker(topology.updates_in),
        fits_the_model,
        is_new,
        has_a_known_base(limits),
        has_sound_values(limits),
    ]
    if strategy.is_sealed:
        gates.append(within_sealed_range)
    if strategy.is_private:
        gates.append(within_privacy_budget)
    if limits.limit_share is not None and strategy.one_update_per_version:
        raise ConfigError(
            f"limit_share has no effect with {strategy.name}, where each worker gives one update to "
            "a round: leave it out; limit_examples bounds the weight of that update"
        )
    if limits.limit_share is not None and strategy.keeping:
        raise ConfigError(
            f"limit_share has no effect with {strategy.name}, where each worker counts by its last update, "
            "however often it sends: leave it out; limit_examples bounds the weight of that update"
        )
    if limits.limit_share is not None and strategy.buffer_size == 1:
        gates.append(within_share_of_the_last_updates(limits.limit_share))
    elif limits.limit_share is not None:
        gates.append(within_share_of_the_buffer(limits.limit_share))
    if limits.limit_norm is not None:
        gates.append(within_norm(limits.limit_norm, limits.on_large_norm))
    return tuple(gates)
