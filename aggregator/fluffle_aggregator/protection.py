"""The settings of what nobody must learn of the sites' data."""

from collections.abc import Mapping
from typing import Final

from pydantic import model_validator

from fluffle_aggregator.private.settings import PrivacySettings
from fluffle_aggregator.sealed.settings import SealedSettings
from fluffle_aggregator.secure.settings import SecureSettings

# What is protected is a sum of updates, which the default strategy does not make.
PROTECTED_STRATEGY: Final = "fedbuff"


class ProtectionSettings(SecureSettings, PrivacySettings, SealedSettings):
    """The settings of secure aggregation, of differential privacy and of sealed federations."""

    @model_validator(mode="before")
    @classmethod
    def _choose_a_strategy_of_sums(cls, given: Mapping[str, object]) -> Mapping[str, object]:
        is_secure = str(given.get("secure_aggregation", "")).lower() in ("1", "true", "yes", "on", "t", "y")
        is_protected = is_secure or given.get("dp") or given.get("sealed")
        return {"strategy": PROTECTED_STRATEGY, **given} if is_protected else given
