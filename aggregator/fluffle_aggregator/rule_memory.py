"""Whether the updates that a rule holds have room in memory. Pure."""

from fluffle.compression import most_bytes
from fluffle.errors import ConfigError
from fluffle.model import Layout
from fluffle.topology import MIB
from fluffle_aggregator.strategies.strategy import Strategy


def require_rule_fits(strategy: Strategy, layout: Layout, codec: str, *, memory_mib: float) -> None:
    """Raise ConfigError when the updates of one buffer would take more memory than the rule may have.

    They are held in this codec, and statistics in float32.
    """
    if not strategy.rule.holds_vectors:
        return
    size = layout.size
    held_bytes = strategy.buffer_size * (most_bytes(codec, size) + 4 * layout.statistics_size)
    if held_bytes > memory_mib * MIB:
        raise ConfigError(
            f"rule {strategy.rule} holds {strategy.buffer_size} updates of {size} values in {codec}, "
            f"{held_bytes / MIB:.3g} MiB, and rule_memory allows {memory_mib:g}: "
            "raise it, or choose a smaller buffer_size or another codec"
        )
