"""The settings of a worker and of an evaluator."""

import os
import socket
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from fluffle.data_source import SourceSettings
from fluffle.errors import ConfigError, TaskError
from fluffle.privacy.promise import Mechanism
from fluffle.sealed.plan import parse_patterns
from fluffle.settings import PartName, ServiceSettings, SharedSettings
from fluffle.task import Site
from fluffle_worker.insisting import Insistence
from fluffle_worker.pace.precision import Precision
from fluffle_worker.pace.share import TrainShare

TASK = "digits, fashion_mnist, diabetes, tabular, or your own task as package.module:name."


def _readable_patterns(text: str) -> str:
    parse_patterns(text)
    return text


class SiteSettings(SourceSettings):
    """What a worker trains: a task, and this site's part of the data."""

    task: str = Field(description=f"Task to train: {TASK}")
    site: int = Field(0, ge=0, description="Number of this site, starting at 0.")
    sites: int = Field(4, ge=1, description="Number of sites that share the data of a ready task.")
    split: str = Field(
        "dirichlet:0.5",
        description="How the data is split among the sites: iid, dirichlet:ALPHA or shards:LABELS_PER_SITE.",
    )
    split_seed: int = Field(
        0, ge=0, description="Random seed of the split. Must be the same for all workers."
    )

    local_validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of this site's data that it holds out, in the proportions of its classes, to "
        "evaluate the versions that it receives. For a task without validation_data of its own.",
    )

    def make_site(self) -> Site:
        """Return which site this is, and how the data is split; raises TaskError if there is none such."""
        if self.site >= self.sites:
            raise TaskError(
                f"there is no site {self.site} of {self.sites} (0 to {self.sites - 1}): set --site or "
                "--sites, which is the number of workers and the same for all"
            )
        return Site(
            index=self.site,
            count=self.sites,
            split=self.split,
            seed=self.split_seed,
            validation=self.local_validation,
        )


class SealedSettings(SharedSettings):
    """The key of a sealed federation."""

    sealed_secret: Path | None = Field(
        None,
        description="File sealed.secret with the key of a sealed federation (fluffle keys sealed), which its "
        "workers and evaluators share. With it, nothing is trained or evaluated that is not sealed.",
    )
    sealed_only: Annotated[str, AfterValidator(_readable_patterns)] | None = Field(
        None,
        description="Tensors that must be sealed, by patterns such as head/*, with spaces between them. The "
        "others may travel in the clear if the aggregator says so. All must be sealed if unset.",
    )

    @model_validator(mode="after")
    def _sealed_only_has_an_effect(self) -> Self:
        if self.sealed_only is not None and self.sealed_secret is None:
            raise ValueError("sealed_only has no effect without sealed_secret: give both, or none")
        return self

    @property
    def must_be_sealed(self) -> tuple[str, ...]:
        """The patterns of the tensors that must be sealed; without one each tensor must be."""
        return parse_patterns(self.sealed_only) if self.sealed_only else ()


class WorkerSettings(SiteSettings, SealedSettings, ServiceSettings):
    """Flags of `fluffle worker`, keys of the table [worker]."""

    part: ClassVar[str] = "worker"

    name: PartName | None = Field(
        None,
        description="Name of this worker. Each worker needs a name of its own. Default: HOST-SITE, such as "
        "ward-7-0.",
    )
    seed: int = Field(0, ge=0, description="Random seed of this worker's minibatches.")
    delay: float = Field(
        0.0,
        ge=0,
        description="Seconds to wait in each round, to simulate a slow device in demos and tests.",
    )
    step_delay: float = Field(
        0.0,
        ge=0,
        description="Seconds to wait after each minibatch, to simulate a device that computes slowly.",
    )
    train_share: TrainShare = Field(
        1.0,
        description="For a device that is too small or too slow: train and send only the last layers of the "
        "model, those that have at most this share of its trained parameters, such as 0.2. The others are "
        "frozen here. With auto, as many layers as fit into round_seconds and memory_mib.",
    )
    memory_mib: int | None = Field(
        None,
        ge=1,
        description="MiB of main memory that this worker's process may take while batch_size auto and "
        "train_share auto look for what fits. Default: half of what is free, in this machine or in its "
        "container.",
    )
    quantize_training: Precision | None = Field(
        None,
        description="Let the layers of a Keras model compute in 16 bits, which takes less memory, and less "
        "time on hardware made for it. Weights and updates stay as they are. Default: the task's own dtypes.",
    )
    spool: Path = Field(
        Path(".fluffle/spool"),
        description="Folder for trained updates that the broker has not confirmed yet. Each worker uses the "
        "subfolder FEDERATION/NAME.",
    )
    spool_max_mib: int = Field(
        1024,
        ge=1,
        description="Largest size of that folder in MiB; above it, the oldest updates are dropped.",
    )
    train_offline: bool = Field(
        False,
        description="Keep training from the newest downloaded model while the broker cannot be reached.",
    )
    tensorboard: Path | None = Field(
        None,
        description="Folder for TensorBoard curves of the federation and of each site, where no evaluator "
        "writes them (tensorboard --logdir FOLDER).",
    )

    secure_key: Path | None = Field(
        None,
        description="File with this worker's private key of secure aggregation (fluffle keys worker). With "
        "it the worker sends updates masked or not at all. Needs secure_registry and secure_operator.",
    )
    secure_registry: Path | None = Field(
        None,
        description="File registry.json of secure aggregation, signed by the operator. It may be replaced "
        "while the worker runs.",
    )
    secure_operator: Path | None = Field(
        None, description="File operator.pub, the public key with which the registry must be signed."
    )

    dp_epsilon: float | None = Field(
        None,
        gt=0,
        description="The most epsilon that this worker's data may spend in a federation. The worker leaves "
        "before it sends anything if the plan has no differential privacy, or spends more. With the "
        "mechanism central it has to trust the aggregator, which alone adds the noise: see dp.",
    )
    dp_delta: float = Field(1e-5, gt=0, lt=1, description="The delta at which dp_epsilon holds.")
    dp: Mechanism = Field(
        "central",
        description="With dp_epsilon, the mechanism that this worker insists on: central (the aggregator "
        "must be trusted), distributed (enough other workers of each sum must be honest) or local (nobody "
        "need be trusted). One that needs less trust will do too.",
    )

    @model_validator(mode="after")
    def _insists_on_an_epsilon(self) -> Self:
        given = sorted(self.model_fields_set & {"dp", "dp_delta"})
        if given and self.dp_epsilon is None:
            raise ValueError(f"{given[0]} has no effect without dp_epsilon: give both")
        return self

    @property
    def insistence(self) -> Insistence | None:
        """How private this worker's data must stay; None if that is left to the federation."""
        if self.dp_epsilon is None:
            return None
        return Insistence(epsilon=self.dp_epsilon, delta=self.dp_delta, mechanism=self.dp)

    @property
    def secure_files(self) -> tuple[Path, Path, Path] | None:
        """The files of secure aggregation: key, registry and operator; None if none is given.

        Raises ConfigError when some of them are missing.
        """
        key, registry, operator = self.secure_key, self.secure_registry, self.secure_operator
        if key and registry and operator:
            return key, registry, operator
        files = {"secure_key": key, "secure_registry": registry, "secure_operator": operator}
        given = [name for name, path in files.items() if path]
        if given:
            missing = " and ".join(name for name in files if name not in given)
            raise ConfigError(f"{' and '.join(given)} is set, but not {missing}: give all three, or none")
        return None

    @property
    def worker_name(self) -> str:
        """The name that this worker's updates carry."""
        return self.name or f"{socket.gethostname()}-{self.site}"

    @property
    def spool_folder(self) -> Path:
        """The folder where this worker's updates wait for the broker's confirm."""
        return self.spool / self.federation / self.worker_name

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {**super().log_fields(), "worker": self.worker_name}


class EvaluatorSettings(SealedSettings, SourceSettings, ServiceSettings):
    """Flags of `fluffle evaluator`, keys of the table [evaluator]."""

    part: ClassVar[str] = "evaluator"

    task: str = Field(description=f"Task that provides the model and the held-out data: {TASK}")
    name: PartName = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="Name of this evaluator in logs and in RabbitMQ's UI. Default: HOST-PID.",
        validate_default=True,
    )
    tensorboard: Path | None = Field(
        None, description="Folder for TensorBoard curves and histograms (tensorboard --logdir FOLDER)."
    )

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {**super().log_fields(), "evaluator": self.name}
