"""The settings of a simulation: those of the aggregator, the devices and the data."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fluffle.compression import leaves_out
from fluffle.errors import ConfigError
from fluffle.task import Site
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.report.run import make_empty_folder
from fluffle_cli.simulate.devices import require_distribution, seconds_of_devices

Distribution = Annotated[str, readable_by(require_distribution)]


class SimulateSettings(AggregatorSettings):
    """Flags of `fluffle simulate`, keys of the table [simulate]."""

    part: ClassVar[str] = "simulate"
    is_service: ClassVar[bool] = False

    task: str = Field(
        "digits",
        description="What to train: digits, fashion_mnist, diabetes, or your own package.module:name.",
    )
    clients: int = Field(
        4, ge=1, le=100_000, description="Number of workers, each with its part of the data."
    )
    split: str = Field(
        "dirichlet:0.5", description="How the data is split: iid, dirichlet:ALPHA or shards:LABELS_PER_SITE."
    )
    round_seconds: Distribution = Field(
        "spread",
        description="Seconds that a device adds to each of its rounds: constant[:SECONDS] (1), "
        "spread[:FASTEST][:TIMES] (0.25 and 8), tiers[:FAST][:MIDDLE][:SLOW] (1, 2 and 4), "
        "half-normal[:SCALE] (1), lognormal[:MEDIAN][:SIGMA] (1 and 0.6) or exponential[:MEAN] (1). Each "
        "device draws once.",
    )
    example_seconds: Distribution = Field(
        "constant:0", description="Seconds that a device takes to train one example, drawn in the same ways."
    )
    bandwidth: float | None = Field(
        None, gt=0, description="Mbit/s with which each device sends its updates. Default: no limit."
    )
    evaluate_every: int = Field(1, ge=1, description="Evaluate each of so many versions.")
    out: Path | None = Field(
        None, description="Folder for the results, by default runs/simulated-TASK-STRATEGY-DATE-TIME."
    )

    def check(self) -> None:
        """Raise ConfigError for what cannot be simulated."""
        if leaves_out(self.codec):
            raise ConfigError(
                f"--codec {self.codec} is not simulated yet, because the worker keeps what it leaves out on "
                "its disk: choose float32, bfloat16 or int8"
            )
        if not (self.max_seconds or self.max_versions or self.max_updates):
            raise ConfigError(
                "a simulation needs an end: give --max-seconds, --max-updates or --max-versions"
            )

    def site(self, index: int) -> Site:
        """Return one device's part of the data."""
        return Site(index=index, count=self.clients, split=self.split, seed=self.seed)

    def seconds_of_devices(self) -> tuple[list[float], list[float]]:
        """Return what each device adds to a round, and what it takes for one example, in seconds."""
        random = np.random.default_rng([self.seed, 7])
        texts = self.round_seconds, self.example_seconds
        fixed, each = (seconds_of_devices(text, self.clients, random).tolist() for text in texts)
        return fixed, each

    def make_folder(self) -> Path:
        """Make the folder of this run; ConfigError when it has something in it already."""
        name = self.task.partition(":")[0].rpartition(".")[2]
        when = datetime.now().astimezone()
        folder = self.out or Path("runs") / f"simulated-{name}-{self.strategy}-{when:%Y%m%d-%H%M%S}"
        return make_empty_folder(folder, given_as="--out ")
