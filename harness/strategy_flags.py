"""An aggregator's flags for a strategy: it refuses settings that the strategy does not read."""

from fluffle_aggregator.strategies.registry import STRATEGIES


def strategy_flags(strategy: str, buffer_size: int) -> tuple[str, ...]:
    """Return an aggregator's flags for a strategy, with the buffer size if it has a buffer."""
    has_buffer = "buffer_size" in STRATEGIES[strategy].model_fields
    return ("--strategy", strategy, *(("--buffer-size", str(buffer_size)) if has_buffer else ()))
