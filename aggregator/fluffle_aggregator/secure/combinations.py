"""Which settings go together with secure aggregation. Pure."""

from typing import Final

from fluffle.errors import ConfigError
from fluffle.sites import MEAN, is_of_sites, site_metric_in
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.strategies.strategy import Strategy

STRATEGIES: Final = ("fedbuff", "fedavg")
# Setting, and why it cannot be had.
REFUSED: Final = {
    "codec": "updates travel as masked numbers, whose size secure_modulus says: leave codec out",
    "staleness": "the weight of a late update is an integer that helpers compute too: leave staleness out",
    "throttle": "weights follow from staleness alone: leave throttle out",
    "normalize_steps": "nobody can scale a single update: leave normalize_steps out, and give local_steps",
    "round_seconds": "updates of different numbers of steps cannot be normalised: give local_steps instead",
    "limit_norm": "nobody sees a single update: workers clip to secure_clip, so leave limit_norm out",
    "on_large_norm": "nobody sees a single update: leave on_large_norm out",
    "limit_share": "helpers open no sum of which one worker has more than half: leave limit_share out",
    "commit_every": "each opened sum is a version: leave commit_every out",
    "commit_after": "each opened sum is a version: leave commit_after out",
    "min_examples": "no update says how many examples it has: leave min_examples out",
    "limit_examples": "no update says how many examples it has: leave limit_examples out",
}
# What travels in sums where the goal names no metric of the sites.
USUAL_METRICS: Final = ("loss", "accuracy")


def metrics_in_sums(goal: Goal) -> tuple[str, ...]:
    """Return the metrics of sites that travel in their updates: those of the goal, or the usual ones.

    Raises ConfigError for a goal that needs the value of a single site.
    """
    of_sites = [each.metric for each in goal.yardsticks if is_of_sites(each.metric)]
    if single := [metric for metric in of_sites if not metric.startswith(MEAN)]:
        raise ConfigError(
            f"secure_aggregation has no {single[0]}, since nobody learns what a single site measures: name "
            f"{MEAN}{site_metric_in(single[0])}, the mean over the sites"
        )
    return tuple(dict.fromkeys(site_metric_in(metric) for metric in of_sites)) or USUAL_METRICS


def require_combinable(strategy: Strategy, given: set[str], weigh_by: str) -> None:
    """Raise ConfigError for settings, of those that are `given`, that need single updates."""
    if strategy.name not in STRATEGIES:
        raise ConfigError(
            f"secure_aggregation has no strategy {strategy.name}, which needs single updates: choose "
            f"{' or '.join(STRATEGIES)}"
        )
    if strategy.rule.holds_vectors:
        raise ConfigError(
            f"secure_aggregation has no rule {strategy.rule}, which compares single updates: leave rule out"
        )
    if "weigh_by" in given and weigh_by != "none":
        raise ConfigError(
            "secure_aggregation weighs all updates by their staleness alone, so that no weight tells about a "
            "site: leave weigh_by out"
        )
    for name, why in REFUSED.items():
        if name in given:
            raise ConfigError(f"{name} does not go together with secure_aggregation: {why}")
