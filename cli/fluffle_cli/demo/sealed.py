"""A sealed federation in the demo: its key, which in a real federation is copied to each site by hand."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from fluffle.record import ModelVersion
from fluffle_cli.making_sealed_key import PUBLIC, SECRET, make_key
from fluffle_worker.sealed_versions import opened, read_key, require_key


class DemoSealedSettings(BaseModel):
    """What the demo is told of sealed federations."""

    sealed: bool = Field(
        False,
        description="Encrypt updates and model with a key that workers and evaluator share, so that "
        "aggregator and broker see neither. The strategy is then fedbuff unless given. Needs TenSEAL.",
    )


@dataclass(frozen=True, slots=True)
class DemoKey:
    """The folder with the two files of the key."""

    folder: Path

    @property
    def of_site(self) -> dict[str, object]:
        """The setting of a worker, and of the evaluator."""
        return {"sealed_secret": self.folder / SECRET}

    @property
    def of_aggregator(self) -> dict[str, object]:
        """The setting of an aggregator."""
        return {"sealed": self.folder / PUBLIC}

    def make(self) -> None:
        """Draw the key."""
        make_key(self.folder)

    def opened(self, version: ModelVersion) -> ModelVersion:
        """Return a version of the federation, decrypted."""
        plan = version.plan.sealed
        if plan is None:
            return version
        key = require_key(plan, read_key(self.folder / SECRET), federation=version.federation, who="demo")
        return opened(version, plan, key)

    def delete(self) -> None:
        """Delete the key: with it, what was encrypted in this demo could be read."""
        shutil.rmtree(self.folder, ignore_errors=True)
