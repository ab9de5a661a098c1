"""The settings of a helper."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from fluffle.settings import ServiceSettings

FEWEST_WORKERS = 3


class HelperSettings(ServiceSettings):
    """Flags of `fluffle helper`, keys of the table [helper]."""

    part: ClassVar[str] = "helper"

    secure_key: Path = Field(
        description="File with this helper's key, NAME.key of `fluffle keys helpers`. Beside it lies its "
        "ledger, NAME-EPOCH.ledger, which this helper writes to.",
    )
    secure_registry: Path = Field(
        description="File with the registry of helpers and workers, signed by the operator: registry.json of "
        "`fluffle keys registry`.",
    )
    secure_operator: Path = Field(
        description="File with the operator's public key: operator.pub of `fluffle keys init`."
    )
    secure_min_workers: int = Field(
        FEWEST_WORKERS,
        ge=2,
        description="Open no sum with updates of fewer workers than this.",
    )
