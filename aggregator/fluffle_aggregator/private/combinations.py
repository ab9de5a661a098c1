"""Which settings go together with differential privacy. Pure."""

from collections.abc import Mapping
from typing import Final

from fluffle.compression import is_packed
from fluffle.errors import ConfigError
from fluffle.model import Layout, some_of
from fluffle.privacy.promise import Mechanism
from fluffle.sites import is_of_sites
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.strategies.strategy import Strategy

STRATEGIES: Final = ("fedbuff", "fedavg")
Refused = Mapping[str, str]
# Setting, and why it cannot be had: what tells of a site beside its updates.
REFUSED: Final[Refused] = {
    "normalize_steps": "no update says how many steps it has: leave normalize_steps out",
    "round_seconds": "no update says how many steps it has: give local_steps instead",
    "min_examples": "no update says how many examples it has: leave min_examples out",
    "limit_examples": "no update says how many examples it has: leave limit_examples out",
    "evaluate_every": "no site reports what it measures: leave evaluate_every out",
    "survey": "the result would tell of the sites' data without noise: leave survey out",
    "survey_seconds": "the result would tell of the sites' data without noise: leave survey_seconds out",
}
# What else is no sum of clipped updates, of which each worker has one at most.
REFUSED_FOR_SUMS: Final[Refused] = {
    "throttle": "weights follow from staleness alone: leave throttle out",
    "limit_norm": "each update is clipped to dp_clip: leave limit_norm out",
    "on_large_norm": "each update is clipped to dp_clip: leave on_large_norm out",
    "limit_share": "each worker has one update in a sum: leave limit_share out",
    "commit_every": "each sum is a version: leave commit_every out",
    "commit_after": "each sum is a version: leave commit_after out",
}
# The same for one mechanism alone.
REFUSED_FOR: Final[Mapping[Mechanism, Refused]] = {
    "central": {
        **REFUSED_FOR_SUMS,
        "secure_aggregation": "the aggregator clips single updates, which secure aggregation hides from it: "
        "give dp distributed, with which the workers clip, and add the noise",
    },
    "distributed": {
        **REFUSED_FOR_SUMS,
        "dp_secret": "workers draw their shares of the noise at random: leave dp_secret out",
        "dp_noise": "noise in shares is never correlated: leave dp_noise out",
        "dp_separation": "noise in shares is the same for each sum: leave dp_separation out",
        "secure_clip": "updates are clipped to dp_clip: leave secure_clip out",
        "secure_bits": "as many bits are taken as fit beside the noise: leave secure_bits out",
    },
    "local": {
        "secure_aggregation": "each update would have the noise of a whole sum: give dp distributed, with "
        "which the workers of a sum share the noise",
        "dp_secret": "each worker draws its noise at random: leave dp_secret out",
        "dp_noise": "noise of single updates is never correlated: leave dp_noise out",
        "dp_separation": "each update has all its noise, whatever lies between two: leave dp_separation out",
    },
}


def require_combinable(
    mechanism: Mechanism, strategy: Strategy, given: Mapping[str, object], *, codec: str, is_auto: bool
) -> None:
    """Raise ConfigError for settings, of those that are `given`, that noise does not cover.

    `is_auto` says that workers choose the size of their minibatches. With the mechanism local all that the
    aggregator does with an update is computed from it and its noise, and shows no more of the site.
    """
    if mechanism == "local":
        _require_deltas(strategy)
    else:
        _require_sums(strategy)
    if given.get("weigh_by", "none") != "none":
        raise ConfigError(
            "dp weighs no update by its examples, since no update says how many it has: leave weigh_by out"
        )
    for dp, refused in (("dp", REFUSED), (f"dp {mechanism}", REFUSED_FOR[mechanism])):
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
    if is_packed(codec) and mechanism != "local":
        raise ConfigError(
            f"codec {codec} does not go together with dp: events tell the size of each message, which zstd "
            "lets depend on the site's data; leave +zstd out"
        )


def _require_deltas(strategy: Strategy) -> None:
    if strategy.sends != "delta":
        raise ConfigError(
            f"dp local has no strategy {strategy.name}, which needs weights: the noise is for deltas, so "
            "choose another, such as reuse or fedbuff"
        )


def _require_sums(strategy: Strategy) -> None:
    if strategy.name not in STRATEGIES:
        raise ConfigError(
            f"dp has no strategy {strategy.name}, which is no sum of updates, each of them in one version: "
            f"choose {' or '.join(STRATEGIES)}, or dp local"
        )
    if strategy.rule.holds_vectors:
        raise ConfigError(f"dp has no rule {strategy.rule}: its noise is for sums, so leave rule out")


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
