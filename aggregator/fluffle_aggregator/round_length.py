"""How long a round of a worker is: settings that contradict each other. Pure."""

from collections.abc import Mapping

from fluffle.errors import ConfigError
from fluffle_aggregator.strategies.strategy import Strategy


def require_one_length_of_rounds(
    given: Mapping[str, object], min_steps: int, max_steps: int, strategy: Strategy
) -> None:
    """Raise ConfigError for settings, of those that are `given`, of how long a round is that contradict."""
    if given.get("round_seconds") is None:
        if idle := [name for name in ("min_steps", "max_steps") if name in given]:
            raise ConfigError(
                f"{idle[0]} has no effect without round_seconds, for which workers choose their steps: give "
                "round_seconds, or local_steps for a fixed number"
            )
        return
    for name in ("local_steps", "local_epochs"):
        if given.get(name) is not None:
            raise ConfigError(f"round_seconds and {name} both say how long a round is: leave one of them out")
    if min_steps > max_steps:
        raise ConfigError(
            f"min_steps is {min_steps} and max_steps {max_steps}: the least must not be more than the most"
        )
    if strategy.sends == "weights":
        raise ConfigError(
            f"{strategy.name} has workers send their weights, which cannot be normalised by the number of "
            "local steps that round_seconds leaves to each worker: choose reuse or fedbuff, or give "
            "local_steps instead"
        )
