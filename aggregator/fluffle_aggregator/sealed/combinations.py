"""Which settings go together with a sealed federation. Pure."""

from collections.abc import Mapping
from typing import Final

from fluffle.errors import ConfigError
from fluffle.model import Layout, some_of
from fluffle.sealed.part import is_matching, trained_tensors
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.transforms import Sgd

STRATEGIES: Final = ("fedbuff", "fedavg")
# Setting, the values that change nothing, and why it cannot have another one.
REFUSED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "secure_aggregation": (
        (False,),
        "updates are encrypted already, by a key that all workers share: give one of the two",
    ),
    "dp": ((), "the aggregator clips and adds noise to what it can read: give one of the two"),
    "codec": (("float32",), "updates travel as ciphertexts: leave codec out"),
    "downlink_codec": (("float32",), "ciphertexts cannot be rounded: leave downlink_codec out"),
    "average_versions": ((0.0,), "nobody without the key can average models: leave average_versions out"),
    "staleness": (
        (),
        "ciphertexts have integer weights, which follow from how late an update is: leave staleness out",
    ),
    "weigh_by": (
        ("none",),
        "ciphertexts have integer weights, and the examples of a site give none: leave weigh_by out",
    ),
    "throttle": ((1.0,), "ciphertexts have integer weights: leave throttle out"),
    "normalize_steps": ((False,), "nobody without the key can scale an update: leave normalize_steps out"),
    "round_seconds": ((), "updates of different numbers of steps cannot be normalised: give local_steps"),
    "limit_norm": (
        (),
        "nobody without the key sees how long an update is: workers clip to sealed_clip, so "
        "leave limit_norm out",
    ),
    "on_large_norm": (("reject",), "nobody without the key sees how long an update is: leave it out"),
    "limit_share": (
        (),
        "the workers of a sealed federation trust each other with their key: leave limit_share out",
    ),
    "survey": ((), "answers would show the sites' data to the aggregator: leave survey out"),
    "survey_seconds": ((), "answers would show the sites' data to the aggregator: leave survey_seconds out"),
}


def require_combinable(strategy: Strategy, given: Mapping[str, object], *, is_auto: bool) -> None:
    """Raise ConfigError for settings, of those that are `given`, that need the values of updates.

    `is_auto` says that workers choose the size of their minibatches.
    """
    if strategy.name not in STRATEGIES:
        raise ConfigError(
            f"sealed has no strategy {strategy.name}, which is no sum with integer weights: choose "
            f"{' or '.join(STRATEGIES)}"
        )
    if strategy.rule.holds_vectors:
        raise ConfigError(
            f"sealed has no rule {strategy.rule}, which compares the values of updates: leave rule out"
        )
    for each in strategy.transforms:
        if not isinstance(each, Sgd):
            raise ConfigError(
                f"sealed has no server_optimizer {given.get('server_optimizer')}, which computes with the "
                "values of the sum: sgd is the only one"
            )
    for name, (harmless, why) in REFUSED.items():
        if name in given and given[name] is not None and given[name] not in harmless:
            raise ConfigError(f"{name} does not go together with sealed: {why}")
    if is_auto:
        raise ConfigError(
            "batch_size auto does not go together with sealed: updates of different batches cannot be "
            "normalised, so give a number"
        )


def require_sealable(layout: Layout, only: tuple[str, ...]) -> None:
    """Raise ConfigError for patterns that no tensor matches, and for averages of the sites' data.

    Those are merged by their values, which nobody can read once they are sealed.
    """
    trained = [each.name for each in trained_tensors(layout) if each.size]
    for pattern in only:
        if not any(is_matching(name, (pattern,)) for name in trained):
            raise ConfigError(
                f"sealed_only {pattern!r} matches no trained tensor of the model: it has {some_of(trained)}"
            )
    averages = [
        each.name
        for each in layout.tensors
        if each.is_float and each.group == "statistic" and is_matching(each.name, only)
    ]
    if averages:
        raise ConfigError(
            f"sealed cannot merge averages of the sites' data, and the model has {some_of(averages)}: keep "
            'such layers at the sites (KerasTask(..., local=["*batch_normalization*"]), see docs/models.md), '
            "take LayerNormalization or GroupNormalization, or leave them open with sealed_only"
        )
