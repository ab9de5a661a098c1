"""Which settings go together with differential privacy. Pure."""

from typing import Final

from fluffle.compression import is_packed
from fluffle.errors import ConfigError
from fluffle.model import Layout, some_of
from fluffle.privacy.promise import Mechanism
from fluffle.sites import is_of_sites
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.strategies.strategy import Strategy

STRATEGIES: Final = ("fedbuff", "fedavg")
# Setting, and why it cannot be had.
REFUSED: Final = {
    "throttle": "weights follow from staleness alone: leave throttle out",
    "normalize_steps": "it would show how many steps a site makes: leave normalize_steps out",
    "round_seconds": "it would show how fast a site is: give local_steps instead",
    "limit_norm": "each update is clipped to dp_clip: leave limit_norm out",
    "on_large_norm": "each update is clipped to dp_clip: leave on_large_norm out",
    "limit_share": "each worker has one update in a sum: leave limit_share out",
    "min_examples": "no update says how many examples it has: leave min_examples out",
    "limit_examples": "no update says how many examples it has: leave limit_examples out",
    "commit_every": "each sum is a version: leave commit_every out",
    "commit_after": "each sum is a version: leave commit_after out",
    "evaluate_every": "no site reports what it measures: leave evaluate_every out",
    "survey": "the result would tell of the sites' data without noise: leave survey out",
    "survey_seconds": "the result would tell of the sites' data without noise: leave survey_seconds out",
}
# The same for one mechanism alone.
REFUSED_FOR: Final = {
    "central": {
        "secure_aggregation": "the aggregator clips single updates, which secure aggregation hides from it: "
        "give dp distributed, with which the workers clip, and add the noise",
    },
    "distributed": {
        "dp_secret": "workers draw their shares of the noise at random: leave dp_secret out",
        "dp_noise": "noise in shares is never correlated: leave dp_noise out",
        "dp_separation": "noise in shares is the same for each sum: leave dp_separation out",
        "secure_clip": "updates are clipped to dp_clip: leave secure_clip out",
        "secure_bits": "as many bits are taken as fit beside the noise: leave secure_bits out",
    },
}


def require_combinable(
    mechanism: Mechanism, strategy: Strategy, given: dict[str, object], *, codec: str, is_auto: bool
) -> None:
    """Raise ConfigError for settings, of those that are `given`, that noise does not cover.

    `is_auto` says that workers choose the size of their minibatches.
    """
    if strategy.name not in STRATEGIES:
        raise ConfigError(
            f"dp has no strategy {strategy.name}, which is no sum of updates, each of them in one version: "
            f"choose {' or '.join(STRATEGIES)}"
        )
    if strategy.rule.holds_vectors:
        raise ConfigError(f"dp has no rule {strategy.rule}: its noise is for sums, so leave rule out")
    if given.get("weigh_by", "none") != "none":
        raise ConfigError(
            "dp weighs all updates by their staleness alone, since noise covers no number of examples: leave "
            "weigh_by out"
        )
    for dp, refused in (("dp", REFUSED), (f"dp {mechanism}", REFUSED_FOR.get(mechanism, {}))):
        for name, why in refused.items():
            if given.get(name) not in (None, False):
                raise ConfigError(f"{name} does not go together with {dp}: {why}")
    if mechanism == "distributed" and not given.get("secure_aggregation"):
        raise ConfigError(
            "dp distributed needs secure_aggregation, under which no single update is seen: give both, or dp "
            "central"
        )
    if is_auto:
        raise ConfigError(
            "batch_size auto does not go together with dp: updates of different batches cannot be "
            "normalised, so give a number"
        )
    if is_packed(codec):
        raise ConfigError(
            f"codec {codec} does not go together with dp: events tell the size of each message, which zstd "
            "lets depend on the site's data; leave +zstd out"
        )


def require_no_goal_of_sites(goal: Goal) -> None:
    """Raise ConfigError for a goal that is measured at the sites."""
    for metric in (each.metric for each in goal.yardsticks):
        if is_of_sites(metric):
            raise ConfigError(
                f"dp has no {metric}, since no site reports what it measures: let an evaluator measure it on "
                "data of its own (`fluffle evaluator`)"
            )


def require_no_statistics(layout: Layout) -> None:
    """Raise ConfigError for a model with averages of the sites' data, such as those of BatchNormalization."""
    if names := [each.name for each in layout.tensors if each.group == "statistic" and each.is_float]:
        raise ConfigError(
            f"dp has no noise for averages of the sites' data, and the model has {some_of(names)}: keep such "
            'layers at the sites (KerasTask(..., local=["*batch_normalization*"]), see docs/models.md), or '
            "take LayerNormalization or GroupNormalization"
        )
