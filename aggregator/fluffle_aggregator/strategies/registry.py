"""The registry of strategies: the base classes of `StrategySettings`. Pure.

To add one, write a module like fedbuff.py and name its class there: the flags of `fluffle aggregator`, what
they accept, the demo and the trial of a suspicious message all follow from this list.
"""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from fluffle_aggregator.strategies.cached import AceSettings, Ca2flSettings
from fluffle_aggregator.strategies.fadas import FadasSettings
from fluffle_aggregator.strategies.fedac import FedAcSettings
from fluffle_aggregator.strategies.fedasync import FedAsyncSettings
from fluffle_aggregator.strategies.fedavg import FedAvgSettings
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings
from fluffle_aggregator.strategies.reuse import ReuseSettings
from fluffle_aggregator.strategies.ringleader import RingleaderSettings
from fluffle_aggregator.strategies.strategy import Strategy, StrategyKind


def _require_known(name: str) -> str:
    if name not in STRATEGIES:
        raise ValueError(f"must be one of {', '.join(STRATEGIES)}, not {name!r}")
    return name


# In threes, since pydantic's plugin for mypy fails on a class of more bases that is a base itself.
class _BufferedSettings(FedBuffSettings, FedAvgSettings, FadasSettings):
    """The strategies with a buffer that a rule combines."""


class _CachedSettings(AceSettings, Ca2flSettings, RingleaderSettings):
    """The strategies that keep each worker's last updates, as in the papers."""


class _FurtherSettings(FedAcSettings, FedAsyncSettings, ReuseSettings):
    """The others."""


class _AllSettings(_BufferedSettings, _FurtherSettings, _CachedSettings):
    """The registry: each strategy's settings, of which those with one name are one setting."""


STRATEGIES: Mapping[str, type[StrategyKind]] = {
    each.named: each
    for group in _AllSettings.__bases__
    for each in group.__bases__
    if issubclass(each, StrategyKind)
}


class StrategySettings(_AllSettings):
    """The choice of a strategy, and the settings of all of them."""

    model_config = ConfigDict(extra="forbid")

    strategy: Annotated[str, AfterValidator(_require_known)] = Field(
        "reuse",
        description="How updates become versions: "
        + ", ".join(f"{each.summary} ({name})" for name, each in STRATEGIES.items())
        + ".",
    )

    @model_validator(mode="after")
    def _sets_what_the_strategy_reads(self) -> Self:
        read = STRATEGIES[self.strategy].model_fields
        for name in sorted(self.model_fields_set & (_AllSettings.model_fields.keys() - read.keys())):
            if getattr(self, name) != _AllSettings.model_fields[name].default:
                users = ", ".join(each for each, kind in STRATEGIES.items() if name in kind.model_fields)
                raise ValueError(
                    f"{name} is a setting of {users}, not of {self.strategy}: leave it out, or choose "
                    "another strategy"
                )
        return self

    def make_strategy(self) -> Strategy:
        """Return the strategy. Raises ConfigError when its settings do not go together."""
        return STRATEGIES[self.strategy].make(self)
