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


# How many times as long as the others the slow site idles.
SLOWER: Final = 16
WITHOUT, WITH = "without remedies", "with remedies"
UNEVEN_TASK: Final = "fluffle_cli.demo.uneven_sites:task"
# What each site of the uneven ones is told with the remedies, as the table [data] of its TOML file.
DATA_REMEDIES: Final[Mapping[str, Mapping[str, object]]] = {
    "long-tail-1": {"balance": "balanced_softmax"},
    "long-tail-2": {"balance": "balanced_softmax"},
    "gaps": {"impute": "median"},
    "slow": {},
    "small": {},
}


def uneven_setups(strategy: str, *, delay_s: float) -> list[Setup]:
    """Return the two federations of uneven sites: without remedies, and with them."""
    delays_s = {name: delay_s * (SLOWER if name == "slow" else 1) for name in DATA_REMEDIES}
    plain = [SiteSetup(name=name, delay_s=delays_s[name]) for name in DATA_REMEDIES]
    mended = [SiteSetup(name=name, delay_s=delays_s[name], data=data) for name, data in DATA_REMEDIES.items()]
    return [
        Setup(name=WITHOUT, strategy=strategy, sites=plain),
        Setup(name=WITH, strategy=strategy, sites=mended),
    ]
