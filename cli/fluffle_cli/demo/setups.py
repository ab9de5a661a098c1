"""What the federations of one run of the demo consist of, and what sets them apart. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSetup:
    """One worker: its name, the seconds that it idles in each round, and what only it is told.

    `settings` are flags of `fluffle worker`, and `data` the table [data] of its TOML file.
    """

    name: str
    delay_s: float
    settings: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One federation: its name in the results, its strategy, its sites, and settings of its aggregators."""

    name: str
    strategy: str
    sites: Sequence[SiteSetup]
    settings: Mapping[str, object] = field(default_factory=dict)


# How many times as long as the others the slow site takes for a minibatch.
SLOWER: Final = 16
WITHOUT, WITH = "without remedies", "with remedies"
UNEVEN_TASK: Final = "fluffle_cli.demo.uneven_sites:task"
# A minibatch takes a fortieth of the delay that others idle in a round.
MINIBATCHES: Final = 40
LONG_TAILED: Final = ("long-tail-1", "long-tail-2")
GAPS, SLOW, SMALL = "gaps", "slow", "small"
UNEVEN_SITES: Final = (*LONG_TAILED, GAPS, SLOW, SMALL)
# What a site is told with the remedies: the table [data] of its TOML file, and flags of `fluffle worker`.
DATA_REMEDIES: Final[Mapping[str, Mapping[str, object]]] = {
    **{name: {"balance": "balanced_softmax"} for name in LONG_TAILED},
    GAPS: {"impute": "median", "outliers": "quantiles:0.05"},
}
FLAGS: Final[Mapping[str, Mapping[str, object]]] = {SMALL: {"train_share": 0.2}}
# Rounds of a second instead of whole passes over the data.
ROUNDS: Final[Mapping[str, object]] = {"local_epochs": None, "round_seconds": 1.0}


def uneven_setups(strategy: str, *, delay_s: float) -> list[Setup]:
    """Return the two federations of uneven sites: without remedies, and with them."""

    def site(name: str, *, has_remedies: bool) -> SiteSetup:
        step_delay_s = delay_s / MINIBATCHES * (SLOWER if name == SLOW else 1)
        flags = FLAGS.get(name, {}) if has_remedies else {}
        data = DATA_REMEDIES.get(name, {}) if has_remedies else {}
        return SiteSetup(
            name=name, delay_s=0.0, settings={"step_delay": round(step_delay_s, 4), **flags}, data=data
        )

    plain = [site(name, has_remedies=False) for name in UNEVEN_SITES]
    mended = [site(name, has_remedies=True) for name in UNEVEN_SITES]
    return [
        Setup(name=WITHOUT, strategy=strategy, sites=plain),
        Setup(name=WITH, strategy=strategy, sites=mended, settings=ROUNDS),
    ]
