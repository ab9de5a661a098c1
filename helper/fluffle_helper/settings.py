"""The settings of a helper."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from fluffle.settings import ServiceSettings


class HelperSettings(ServiceSettings):
    """Flags of `fluffle helper`, keys of the table [helper]."""

    part: ClassVar[str] = "helper"

    secure_key: Path = Field(
        description="File with this helper's private key, NAME.key, as `fluffle keys helpers` made it. The "
        "file NAME.ledger must lie beside it: this helper writes there which updates it has opened.",
    )
    secure_registry: Path = Field(
        description="File with the registry, registry.json. It is read again whenever it has changed."
    )
    secure_operator: Path = Field(
        description="File with the operator's public key, operator.pub, which the registry's signature is "
        "checked with."
    )
    secure_min_workers: int = Field(
        3, ge=2, description="Open no sum that has updates of fewer different workers than this."
    )
    helpers_compare: bool = Field(
        False,
        description="Open a sum only once enough helpers have seen the same close record, so that an "
        "aggregator cannot show them different ones. All helpers must have this setting, and more of them "
        "must be at work: all three of three.",
    )
