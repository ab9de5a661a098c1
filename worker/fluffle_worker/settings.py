"""What can be set about a worker and an evaluator."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from fluffle.settings import MetricsHost, MetricsPort, SharedSettings, require_name
from fluffle.task import Site

TASK = "digits, fashion_mnist, diabetes, or your own as package.module:name."


class WorkerSettings(SharedSettings):
    """Flags of `fluffle worker`, keys of the table [worker]."""

    part: ClassVar[str] = "worker"
    is_service: ClassVar[bool] = True

    task: str = Field(description=f"What to train: {TASK}")
    name: str | None = Field(
        None, description="Name of this worker; by default its host and site. No two workers may share one."
    )
    site: int = Field(0, ge=0, description="Which of the sites this is, from 0.")
    sites: int = Field(4, ge=1, description="Sites that a ready task's data is split among.")
    split: str = Field(
        "dirichlet:0.5", description="How it is split: iid, dirichlet:ALPHA or shards:LABELS_PER_SITE."
    )
    split_seed: int = Field(0, ge=0, description="Seed of the split; the same for all workers.")
    seed: int = Field(0, ge=0, description="Seed of this worker's minibatches.")
    delay: float = Field(
        0.0, ge=0, description="Seconds to idle in each round, to play a slow device in demos and tests."
    )
    spool: Path = Field(
        Path(".fluffle/spool"),
        description="Folder in which finished updates wait until the broker has them, in FEDERATION/NAME.",
    )
    spool_max_mib: int = Field(
        1024, ge=1, description="MiB of updates that may wait there; then the oldest are dropped."
    )
    train_offline: bool = Field(
        False,
        description="Train on from the newest model at hand while the broker cannot be reached.",
    )
    metrics_port: MetricsPort = None
    metrics_host: MetricsHost = "127.0.0.1"

    @field_validator("name")
    @classmethod
    def _is_speakable(cls, name: str | None) -> str | None:
        return None if name is None else require_name(name)

    @property
    def worker_name(self) -> str:
        """The name that this worker's updates carry."""
        return self.name or f"{socket.gethostname()}-{self.site}"

    @property
    def spool_folder(self) -> Path:
        """Where this worker's updates wait."""
        return self.spool / self.federation / self.worker_name

    def make_site(self) -> Site:
        """Return where this worker's data lies."""
        return Site(index=self.site, count=self.sites, split=self.split, seed=self.split_seed)

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {**super().log_fields(), "worker": self.worker_name}


class EvaluatorSettings(SharedSettings):
    """Flags of `fluffle evaluator`, keys of the table [evaluator]."""

    part: ClassVar[str] = "evaluator"
    is_service: ClassVar[bool] = True

    task: str = Field(description=f"Whose held-out data to evaluate on: {TASK}")
    name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="Name of this evaluator in logs and in RabbitMQ's UI.",
        validate_default=True,
    )
    tensorboard: Path | None = Field(
        None, description="Folder for curves and histograms: tensorboard --logdir FOLDER shows them."
    )
    metrics_port: MetricsPort = None
    metrics_host: MetricsHost = "127.0.0.1"

    _name_is_speakable = field_validator("name")(require_name)

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {**super().log_fields(), "evaluator": self.name}
