"""What `fluffle privacy plan` is asked."""

from pathlib import Path
from typing import ClassVar, Final, Self

from pydantic import Field, model_validator

from fluffle.errors import ConfigError
from fluffle.model import MAX_PARAMETERS
from fluffle.privacy.promise import LEAST_CLIP, MOST_CLIP, MOST_SUMS, Mechanism, NoiseKind
from fluffle.privacy.usefulness import MOST_WORKERS
from fluffle.settings import SharedSettings
from fluffle_cli.privacy.planning import (
    PrivacyNumbers,
    PrivateRun,
    numbers_for_epsilon,
    numbers_for_noise,
)

USUAL_SEPARATION: Final = 10


class PrivacyPlanSettings(SharedSettings):
    """Flags of `fluffle privacy plan`, keys of the table [privacy]."""

    part: ClassVar[str] = "privacy"

    workers: int = Field(ge=1, le=MOST_WORKERS, description="Number of workers that will take part.")
    buffer_size: int = Field(
        ge=1, le=MOST_WORKERS, description="Updates per version. All of them share the noise of their sum."
    )
    parameters: int = Field(
        ge=1, le=MAX_PARAMETERS, description="Size of the model. There is noise in each parameter."
    )
    epsilon: float | None = Field(
        None,
        description="What is promised to each worker: whatever can be seen is at most e^epsilon times as "
        "likely with its updates as without them. 1 is strict, 8 is usual, more than 16 promises little.",
    )
    noise: float | None = Field(
        None,
        ge=1e-6,
        le=1e9,
        description="Noise multiplier, the standard deviation of the noise divided by the clip, to learn "
        "which epsilon it gives.",
    )
    delta: float = Field(
        1e-5,
        description="Chance with which the promise does not hold. Take less than 1 divided by the workers.",
    )
    clip: float = Field(
        1.0,
        ge=LEAST_CLIP,
        le=MOST_CLIP,
        description="L2 norm to which longer updates are shortened. The noise grows with it: take about the "
        "median norm of the updates.",
    )
    max_updates: int = Field(
        8,
        ge=1,
        le=MOST_SUMS,
        description="Updates that each worker may send in all. Each of them spends a part of epsilon.",
    )
    separation: int | None = Field(
        None,
        ge=1,
        le=MOST_SUMS,
        description="Versions from one update of a worker to its next, at least. With more, correlated noise "
        "takes back more, and buffer_size times so many workers are needed. Default: "
        f"{USUAL_SEPARATION}, or 1 for plain noise.",
    )
    mechanism: Mechanism = Field(
        "central",
        description="Who adds the noise: the aggregator to each sum (central), the workers of a sum in "
        "shares, under secure aggregation (distributed), or each worker all of it to each update (local).",
    )
    dp_noise: NoiseKind | None = Field(
        None,
        description="Correlated noise takes back a part of the noise before it, which only the mechanism "
        "central can do; plain noise is independent from version to version. Default: correlated with the "
        "mechanism central, and plain otherwise.",
    )
    honest: int | None = Field(
        None,
        ge=1,
        description="For the mechanism distributed: workers of each sum that add their share and tell "
        "nobody, at least; the aggregator's secure_min_workers. Default: half of buffer_size.",
    )
    as_json: bool = Field(
        False, description="Print one JSON object, for programs.", json_schema_extra={"flag": "--json"}
    )
    out: Path | None = Field(
        None,
        description="File for pictures of epsilon and noise, and of the noise after each version: .html with "
        "the tables, or .svg.",
    )

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if (self.epsilon is None) == (self.noise is None):
            raise ValueError("give either epsilon, such as 8, or noise, a noise multiplier")
        if self.max_updates * self._versions_apart > MOST_SUMS:
            raise ValueError(f"max_updates times separation must be at most {MOST_SUMS:,}")
        if self.honest is not None and self.honest > self.buffer_size:
            raise ValueError(f"honest is {self.honest}, more than the {self.buffer_size} workers of a sum")
        if self.mechanism == "distributed" and self._versions_apart > 1:
            raise ValueError("separation has no effect with the mechanism distributed: leave it out")
        if self.dp_noise is not None and self.mechanism != "central":
            raise ValueError(f"dp_noise has no effect with the mechanism {self.mechanism}: leave it out")
        return self

    @property
    def _is_correlated(self) -> bool:
        return (self.dp_noise or ("correlated" if self.mechanism == "central" else "plain")) == "correlated"

    @property
    def _versions_apart(self) -> int:
        return self.separation or (USUAL_SEPARATION if self._is_correlated else 1)

    def numbers(self) -> PrivacyNumbers:
        """Compute all numbers. Raises ConfigError when nothing could keep to what is asked for."""
        asked = PrivateRun(
            workers=self.workers,
            buffer_size=self.buffer_size,
            parameters=self.parameters,
            updates=self.max_updates,
            separation=self._versions_apart,
            clip=self.clip,
            delta=self.delta,
            mechanism=self.mechanism,
            correlated=self._is_correlated,
            honest=self.honest or -(-self.buffer_size // 2),
        )
        if self.noise is not None:
            return numbers_for_noise(asked, self.noise)
        if self.epsilon is not None:
            return numbers_for_epsilon(asked, self.epsilon)
        raise ConfigError("neither epsilon nor noise is set")
