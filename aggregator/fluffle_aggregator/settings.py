"""What can be set about an aggregator, and what an aggregator makes of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from fluffle.compression import leaves_out, require_codec, require_downlink_codec
from fluffle.errors import ConfigError
from fluffle.plan import Plan
from fluffle.settings import ManagementUrl, MetricsHost, MetricsPort, SharedSettings, require_name
from fluffle_aggregator.admission import Policy
from fluffle_aggregator.config import CommitSchedule
from fluffle_aggregator.goal import Goal, parse_target, parse_yardstick
from fluffle_aggregator.schedules import parse_schedule
from fluffle_aggregator.server_optimizers import make_server_optimizer
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies import Strategy, make_strategy

# With commit_after alone: what one commit holds must have an end, since it waits unacked.
MOST_STEPS_PER_COMMIT = 100


class AggregatorSettings(SharedSettings):
    """Flags of `fluffle aggregator`, keys of the table [aggregator]."""

    part: ClassVar[str] = "aggregator"
    is_service: ClassVar[bool] = True

    name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="Name of this aggregator in logs and in RabbitMQ's UI.",
        validate_default=True,
    )
    task: str | None = Field(
        None,
        description="Task whose seeded weights become version 0: digits, fashion_mnist, diabetes, or your "
        "own as package.module:name.",
    )
    initial_model: Path | None = Field(
        None, description="File that becomes version 0 instead: .safetensors, or .keras (needs the task)."
    )
    seed: int = Field(0, description="Seed of the task's initial weights.")

    strategy: Literal["fedasync", "fedbuff", "fedavg"] = Field(
        "fedbuff",
        description="How updates become versions: one by one, a buffer at a time, or in synchronous rounds.",
    )
    buffer_size: int = Field(
        4,
        ge=1,
        description="Updates in one version: FedBuff's K, FedAvg's cohort.",
    )
    staleness: str = Field(
        "polynomial:0.5",
        description="Discount of a late update: constant, polynomial[:EXPONENT] or hinge[:A][:B].",
    )
    mixing: float = Field(0.6, gt=0, le=1, description="FedAsync's mixing weight alpha.")
    weigh_by: Literal["none", "sqrt", "examples"] = Field(
        "examples",
        description="What an update of fedbuff or fedasync counts by its number of examples: in proportion, "
        "by the square root, or all the same, as in the papers. fedavg always weighs by examples.",
    )
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi", "adagrad"] = Field(
        "sgd", description="What is made of a buffer's mean delta."
    )
    server_learning_rate: float = Field(1.0, gt=0, description="The server optimizer's learning rate.")
    server_momentum: float | None = Field(
        None, ge=0, lt=1, description="The server optimizer's beta1; by default 0.9, and 0 for adagrad."
    )

    commit_every: int | None = Field(
        None, ge=1, description="Steps of the model from one published version to the next."
    )
    commit_after: float | None = Field(
        None, gt=0, description="Seconds after which a step is published even if fewer than commit_every are."
    )
    buffer_timeout: float = Field(
        60.0, gt=0, le=900, description="Seconds after which a buffer that does not fill is used as it is."
    )
    max_staleness: int | None = Field(
        None, ge=0, description="Versions by which an update may be late; an older one is rejected."
    )

    limit_messages: int | None = Field(
        None,
        ge=1,
        description="Messages that one RabbitMQ user may send in a minute; more are rejected.",
        json_schema_extra={"panel": "Limits"},
    )
    limit_mib: float | None = Field(
        None,
        gt=0,
        description="MiB that one RabbitMQ user may send in a minute; what is more is rejected.",
        json_schema_extra={"panel": "Limits"},
    )
    limit_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the weight that one worker may have: of a full buffer (fedbuff), or of the "
        "last 50 updates (fedasync).",
        json_schema_extra={"panel": "Limits"},
    )
    min_examples: int = Field(
        1,
        ge=1,
        description="Fewest examples that an update may come from; a smaller one is rejected.",
        json_schema_extra={"panel": "Limits"},
    )
    limit_examples: int = Field(
        Policy().max_examples,
        ge=1,
        description="Most examples that an update may claim, and be weighed by.",
        json_schema_extra={"panel": "Limits"},
    )
    limit_norm: float | None = Field(
        None,
        gt=1,
        description="Norm of an update, in medians of the last 101 admitted; such as 10.",
        json_schema_extra={"panel": "Limits"},
    )
    on_large_norm: Literal["reject", "clip"] = Field(
        "reject",
        description="What is done with an update above limit_norm: reject it, or clip it to the limit.",
        json_schema_extra={"panel": "Limits"},
    )

    target: str | None = Field(
        None, description='What ends the federation: 0.95 (accuracy), "accuracy>=0.95" or "mae<=45".'
    )
    target_hold: int = Field(3, ge=1, description="Evaluations in a row that must reach the target.")
    max_versions: int | None = Field(None, ge=1, description="Versions after which the federation ends.")
    max_updates: int | None = Field(None, ge=1, description="Updates after which the federation ends.")
    max_seconds: float | None = Field(
        None, gt=0, description="Seconds since the first update after which the federation ends."
    )
    best: str | None = Field(
        None,
        description='Metric that says which version is best: "rmse:min", "bleu:max". By default the '
        "target's, "
        "or else accuracy, loss or another metric whose direction is known.",
    )
    stop_on_nan: bool = Field(
        True,
        description="End the federation when 3 evaluations in a row are not finite.",
    )

    local_epochs: int = Field(1, ge=1, description="Epochs that a worker trains in one round.")
    local_steps: int | None = Field(None, ge=1, description="Minibatches in one round, instead of epochs.")
    batch_size: int = Field(32, ge=1, description="Examples in one minibatch.")
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the workers; by default the one that the task compiled in."
    )
    learning_rate_schedule: str = Field(
        "constant",
        description="How the workers' learning rate changes: constant, step[:EVERY][:FACTOR] and "
        "cosine[:VERSIONS][:END] by the number of versions, plateau[:PATIENCE][:FACTOR] when so many "
        "evaluations in a row are no better.",
    )
    keep_optimizer: bool = Field(
        True,
        description="Let each worker keep its optimizer's state, such as Adam's moments, between rounds.",
    )
    proximal_mu: float = Field(
        0.0, ge=0, description="Weight of FedAsync's proximal term, which holds workers near their base."
    )
    codec: str = Field(
        "float32",
        description="How an update's vector travels: float32, bfloat16, int8 or topk:SHARE (topk is 0.01); "
        "+zstd behind it packs it.",
    )

    downlink_codec: str = Field(
        "float32",
        description="How a version's vector travels to the workers: float32, bfloat16 or int8; +zstd behind "
        "it packs it. The aggregators keep the exact one.",
    )

    management_url: ManagementUrl = Field(
        None,
        description="RabbitMQ's management interface, which is asked for policies that would lose messages; "
        "the login is the broker URL's. By default http://HOST:15672 (https://HOST:15671 for amqps://), if "
        "the broker's own port is the usual one too.",
    )

    metrics_port: MetricsPort = None
    metrics_host: MetricsHost = "127.0.0.1"

    _name_is_speakable = field_validator("name")(require_name)

    @field_validator("target")
    @classmethod
    def _is_a_target(cls, text: str | None) -> str | None:
        try:
            if text is not None:
                parse_target(text)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("FLUFFLE_TARGET ")) from error
        return text

    @field_validator("best")
    @classmethod
    def _is_a_yardstick(cls, text: str | None) -> str | None:
        try:
            if text is not None:
                parse_yardstick(text)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("FLUFFLE_BEST ")) from error
        return text

    @field_validator("codec")
    @classmethod
    def _is_known(cls, codec: str) -> str:
        return require_codec(codec)

    @field_validator("downlink_codec")
    @classmethod
    def _is_for_versions(cls, codec: str) -> str:
        return require_downlink_codec(codec)

    @field_validator("learning_rate_schedule")
    @classmethod
    def _is_a_schedule(cls, text: str) -> str:
        try:
            parse_schedule(text)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("FLUFFLE_LEARNING_RATE_SCHEDULE ")) from error
        return text

    @field_validator("staleness")
    @classmethod
    def _is_a_discount(cls, text: str) -> str:
        try:
            parse_discount(text)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("FLUFFLE_STALENESS ")) from error
        return text

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {**super().log_fields(), "aggregator": self.name}

    def make_strategy(self) -> Strategy:
        """Return the strategy; ConfigError when the settings do not go together."""
        return make_strategy(
            self.strategy,
            buffer_size=self.buffer_size,
            mixing=self.mixing,
            discount=parse_discount(self.staleness),
            optimizer=make_server_optimizer(
                self.server_optimizer, learning_rate=self.server_learning_rate, beta1=self.server_momentum
            ),
            weigh_by=self.weigh_by,
        )

    def make_plan(self, strategy: Strategy) -> Plan:
        """Return what the workers are asked for; ConfigError when they cannot send it in this codec."""
        if strategy.sends == "weights" and leaves_out(self.codec):
            raise ConfigError(
                f"FLUFFLE_CODEC {self.codec} leaves out a part of what is sent, and {strategy.name} needs "
                "all of the weights: choose float32, bfloat16 or int8, or the strategy fedbuff"
            )
        return Plan(
            local_epochs=self.local_epochs,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            keep_optimizer=self.keep_optimizer,
            proximal_mu=self.proximal_mu,
            sends=strategy.sends,
            codec=self.codec,
            one_update_per_version=strategy.one_update_per_version,
            updates_per_version=strategy.buffer_size * self.make_commit_schedule().every,
        )

    def make_goal(self) -> Goal:
        """Return what ends the federation."""
        return Goal(
            target=None if self.target is None else parse_target(self.target),
            target_hold=self.target_hold,
            max_versions=self.max_versions,
            max_updates=self.max_updates,
            max_seconds=self.max_seconds,
            best=None if self.best is None else parse_yardstick(self.best),
            stop_on_nan=self.stop_on_nan,
        )

    def make_policy(self) -> Policy:
        """Return what is refused; ConfigError when the limits do not go with the rest."""
        if self.limit_share is not None and self.strategy == "fedavg":
            raise ConfigError(
                "FLUFFLE_LIMIT_SHARE is for fedbuff and fedasync, not fedavg: there each worker gives one "
                "update to a round, and FLUFFLE_LIMIT_EXAMPLES bounds its weight"
            )
        if self.on_large_norm == "clip" and self.limit_norm is None:
            raise ConfigError("FLUFFLE_ON_LARGE_NORM clip needs FLUFFLE_LIMIT_NORM, such as 10")
        return Policy(
            max_staleness=self.max_staleness,
            min_examples=self.min_examples,
            max_examples=self.limit_examples,
            max_messages=self.limit_messages,
            max_mib=self.limit_mib,
            max_share=self.limit_share,
            max_norm=self.limit_norm,
            on_large_norm=self.on_large_norm,
        )

    def make_commit_schedule(self) -> CommitSchedule:
        """Return when to commit; ConfigError when the strategy's workers wait for each version."""
        every = self.commit_every or (1 if self.commit_after is None else MOST_STEPS_PER_COMMIT)
        if self.strategy == "fedavg" and every != 1:
            raise ConfigError(
                "fedavg publishes each version, since its workers wait for it: leave out commit_after, and "
                f"commit_every must be 1, not {every}"
            )
        return CommitSchedule(every=every, after_s=self.commit_after, buffer_timeout_s=self.buffer_timeout)
