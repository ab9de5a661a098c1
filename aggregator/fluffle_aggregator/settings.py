"""The settings of an aggregator, and the objects that it builds from them."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from fluffle.compression import leaves_out, require_codec, require_downlink_codec
from fluffle.data_source import SourceSettings
from fluffle.errors import ConfigError
from fluffle.message_size import (
    require_cache_fits,
    require_moments_fit,
    require_sealed_fits,
    require_update_fits,
    require_version_fits,
)
from fluffle.model import Layout
from fluffle.plan import MAX_STEPS, Plan
from fluffle.privacy.plan import PrivacyPlan
from fluffle.sealed.plan import SEALED
from fluffle.secure.plan import SecurePlan
from fluffle.settings import ManagementUrl, PartName, ServiceSettings
from fluffle.sites import is_of_sites
from fluffle_aggregator.batch_sizes import parse_batch_size
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.goal import Goal, parse_target, parse_yardstick
from fluffle_aggregator.private.combinations import require_combinable as require_private
from fluffle_aggregator.private.combinations import require_no_goal_of_sites
from fluffle_aggregator.private.weighing import private
from fluffle_aggregator.protection import ProtectionSettings
from fluffle_aggregator.round_length import require_one_length_of_rounds
from fluffle_aggregator.rule_memory import require_rule_fits
from fluffle_aggregator.schedules import parse_schedule
from fluffle_aggregator.sealed.combinations import require_combinable as require_sealed
from fluffle_aggregator.sealed.combinations import require_sealable
from fluffle_aggregator.sealed.settings import sealed
from fluffle_aggregator.secure.combinations import metrics_in_sums, require_combinable
from fluffle_aggregator.secure.masked_buffer import share_of_one
from fluffle_aggregator.secure.weighing import IntegerWeights, secured
from fluffle_aggregator.strategies.registry import STRATEGIES, StrategySettings
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.survey import SurveyAim, SurveySettings

# With commit_after alone: what one commit holds must have an end, since it waits unacked.
MOST_STEPS_PER_COMMIT = 100
_OF_THE_GOAL = (
    *("target_hold", "patience", "min_delta"),
    *("max_versions", "max_updates", "max_seconds", "stop_on_nan"),
)
# Of the last update of a single worker there is nothing to make a mean of.
FEWEST_WORKERS = 2


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _of_this_machine(value: object) -> object:
    if "://" in str(value):
        raise ValueError("must be a file of this machine: copy it here first")
    return value


class _AboutData(SurveySettings, ProtectionSettings):
    """What the federation learns of the sites' data, and what it must not learn."""


class AggregatorSettings(Limits, StrategySettings, _AboutData, SourceSettings, ServiceSettings):
    """Flags of `fluffle aggregator`, keys of the table [aggregator]."""

    part: ClassVar[str] = "aggregator"

    name: PartName = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="Name of this aggregator in logs and in RabbitMQ's UI. Default: HOST-PID.",
        validate_default=True,
    )
    task: str | None = Field(
        None,
        description="Task whose initial weights become version 0 of the model: digits, fashion_mnist, "
        "diabetes, tabular, or your own task as package.module:name.",
    )
    initial_model: Annotated[Path | None, BeforeValidator(_of_this_machine)] = Field(
        None, description="File to use as version 0 instead: .safetensors, or .keras (needs the task)."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed of the task's initial weights.")

    commit_every: int | None = Field(
        None, ge=1, description="Publish a version after this many steps. Default: 1 without commit_after."
    )
    commit_after: float | None = Field(
        None,
        gt=0,
        description="Publish after this many seconds if there is at least one step, even before "
        "commit_every.",
    )
    buffer_timeout: float = Field(
        60.0, gt=0, le=900, description="Seconds to wait for a full buffer; then a partial buffer is used."
    )
    target: Annotated[str, readable_by(parse_target)] | None = Field(
        None,
        description='Metric that ends the federation once it is reached: 0.95 (accuracy), "accuracy>=0.95" '
        'or "mae<=45". "sites.accuracy>=0.9" is the mean over the data that sites hold out themselves, '
        '"worst.accuracy>=0.8" the worst site, and "spread.accuracy<=0.05" the standard deviation.',
    )
    target_hold: int = Field(
        3, ge=1, description="Number of evaluations in a row that must reach the target."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="End the federation after this many evaluations in a row none of which was better, by "
        "the metric of the target or of the best version.",
    )
    min_delta: float = Field(
        0.0, ge=0, description="What an evaluation must gain to count as better for patience."
    )
    max_versions: int | None = Field(None, ge=1, description="End the federation after this many versions.")
    max_updates: int | None = Field(None, ge=1, description="End the federation after this many updates.")
    max_seconds: float | None = Field(
        None, gt=0, description="End the federation this many seconds after the first update."
    )
    best: Annotated[str, readable_by(parse_yardstick)] | None = Field(
        None,
        description='Metric that decides which version is best, such as "rmse:min" or "bleu:max". Default: '
        "the metric of the target, else accuracy, loss or another metric whose direction is known.",
    )
    stop_on_nan: bool = Field(
        True,
        description="End the federation when 3 evaluations in a row give NaN or infinity for the loss, or "
        "for the metric of the target or of the best version.",
    )

    local_epochs: int = Field(1, ge=1, description="Number of epochs that a worker trains in one round.")
    local_steps: int | None = Field(
        None, ge=1, description="Number of minibatches in one round, instead of epochs."
    )
    round_seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a round of each worker is to take, instead of epochs or steps: each worker "
        "measures its speed and chooses its number of minibatches. Updates of different numbers are then "
        "normalised (see normalize_steps).",
    )
    min_steps: int = Field(
        1, ge=1, description="Fewest minibatches in a round with round_seconds, however slow the worker is."
    )
    max_steps: int = Field(
        MAX_STEPS, ge=1, description="Most minibatches in a round with round_seconds, however fast it is."
    )
    batch_size: Annotated[str, BeforeValidator(_as_text), readable_by(parse_batch_size)] = Field(
        "32",
        description="Number of examples in one minibatch; or auto[:FIRST] (32): each worker doubles it from "
        "FIRST on while that trains at least 10 % more examples in a second and its memory suffices. Its "
        "learning rate grows in proportion with SGD, and with the square root with other optimizers.",
    )
    max_batch_size: int = Field(
        1024, ge=1, description="Most examples in one minibatch with batch_size auto."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the workers. Default: the one that the task sets."
    )
    learning_rate_schedule: Annotated[str, readable_by(parse_schedule)] = Field(
        "constant",
        description="How the learning rate of the workers changes: constant; step[:EVERY][:FACTOR] (100 and "
        "0.5) or cosine[:VERSIONS][:END] (1000 and 0.01) with the number of versions; "
        "plateau[:PATIENCE][:FACTOR] (5 and 0.5) when that many evaluations in a row are not better. The "
        "numbers in parentheses are the defaults.",
    )
    keep_optimizer: bool = Field(
        True,
        description="Let workers keep the state of their optimizer, such as Adam's moments, between rounds.",
    )
    proximal_mu: float = Field(
        0.0,
        ge=0,
        description="Weight of the proximal term, which keeps workers close to the version that they "
        "started from. Disabled if 0.",
    )
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="Let workers that hold out data (--local-validation) evaluate the version that they "
        "received before every so many rounds. Default: as often as takes a tenth of their time at most.",
    )
    codec: Annotated[str, AfterValidator(require_codec)] = Field(
        "float32",
        description="Compression of updates: float32, bfloat16, int8 or topk:SHARE (topk means topk:0.01). "
        "Append +zstd to also compress with zstd.",
    )

    downlink_codec: Annotated[str, AfterValidator(require_downlink_codec)] = Field(
        "float32",
        description="Compression of the versions that workers download: float32, bfloat16 or int8. Append "
        "+zstd to also compress with zstd. The aggregators keep the exact values.",
    )

    average_versions: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of a running average of the versions, such as 0.9. Evaluators evaluate the "
        "average, and `fluffle model export` writes it, because it fluctuates less than the newest version; "
        "workers train from the newest version all the same. Each version's message then holds two models. "
        "Disabled if 0.",
    )

    management_url: ManagementUrl = Field(
        None,
        description="URL of RabbitMQ's management interface, to check that no policy would lose messages; "
        "the login is the broker URL's. Default: http://HOST:15672 (https://HOST:15671 for amqps://), if the "
        "broker itself uses its default port.",
    )

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {**super().log_fields(), "aggregator": self.name}

    def make_plan(
        self, strategy: Strategy, epoch: int = 1, privacy: PrivacyPlan | None = None, *, size: int = 0
    ) -> Plan:
        """Return what the workers are asked for; ConfigError when they cannot send it in this codec.

        With secure aggregation, `epoch` is that of the registry. With shares of noise, the model has so many
        trained parameters.
        """
        if strategy.sends == "weights" and leaves_out(self.codec):
            raise ConfigError(
                f"codec {self.codec} leaves out a part of what is sent, and {strategy.name} needs "
                "all of the weights: choose float32, bfloat16 or int8, or the strategy fedbuff"
            )
        require_one_length_of_rounds(self.given(), self.min_steps, self.max_steps, strategy)
        batch_size, is_auto = parse_batch_size(self.batch_size)
        if not is_auto and "max_batch_size" in self.model_fields_set:
            raise ConfigError("max_batch_size has no effect without batch_size auto: leave it out")
        if is_auto and batch_size > self.max_batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size} begins with {batch_size}, and max_batch_size is "
                f"{self.max_batch_size}: raise it, or begin with fewer"
            )
        secure, sealed_plan = self._secure_plan(strategy, epoch), self.make_sealed_plan(strategy)
        if privacy and privacy.shares:
            secure = self.shared_sums(strategy.buffer_size, size).secure_plan(privacy, epoch)
        codec = secure.codec if secure else self.codec
        return Plan(
            secure=secure,
            sealed=sealed_plan,
            privacy=privacy,
            local_epochs=self.local_epochs,
            local_steps=self.local_steps,
            round_seconds=self.round_seconds,
            min_steps=self.min_steps,
            max_steps=self.max_steps,
            batch_size=batch_size,
            max_batch_size=self.max_batch_size if is_auto else None,
            learning_rate=self.learning_rate,
            keep_optimizer=self.keep_optimizer,
            proximal_mu=self.proximal_mu,
            sends=strategy.sends,
            codec=SEALED if sealed_plan else codec,
            one_update_per_version=strategy.one_update_per_version,
            updates_per_version=self._updates_per_version(strategy),
            max_staleness=self.staleness_limit(strategy),
            evaluate_every=self.evaluate_every,
            sites_decide=bool(self.make_goal().by_sites),
        )

    def _updates_per_version(self, strategy: Strategy) -> int:
        """Return how many updates a version usually contains; of one worker, with secure aggregation."""
        if self.dp == "distributed":
            return 1
        if self.secure_aggregation:
            return share_of_one(strategy.buffer_size, self.secure_min_workers)
        return strategy.buffer_size * self.make_commit_schedule(strategy).every

    def _secure_plan(self, strategy: Strategy, epoch: int) -> SecurePlan | None:
        if not self.secure_aggregation:
            return None
        require_combinable(strategy, self.model_fields_set, getattr(self, "weigh_by", "none"))
        if parse_batch_size(self.batch_size)[1]:
            raise ConfigError(
                "batch_size auto does not go together with secure_aggregation: updates of different batches "
                "cannot be normalised, so give a number"
            )
        if self.dp == "distributed":
            self.require_openable(strategy.buffer_size)
            return None
        return self.make_secure_plan(
            epoch,
            strategy.buffer_size,
            is_synchronous=strategy.one_update_per_version,
            metrics=metrics_in_sums(self.make_goal()),
        )

    def make_survey_aim(self) -> SurveyAim:
        """Return when a survey of the sites' data ends."""
        return SurveyAim(
            wanted=self.survey or 0,
            seconds=self.survey_seconds,
            min_count=self.survey_min_count,
            most_rows=self.limit_examples,
        )

    def make_strategy(self) -> Strategy:
        """Return the strategy; where workers choose their rounds, deltas are normalised unless forbidden."""
        strategy, is_auto = super().make_strategy(), parse_batch_size(self.batch_size)[1]
        given = self.given()
        if self.sealed:
            require_sealed(strategy, given, is_auto=is_auto)
        if plan := self.make_sealed_plan(strategy):
            return sealed(strategy, plan)
        if self.dp:
            require_private(self.dp, strategy, given, codec=self.codec, is_auto=is_auto)
            require_no_goal_of_sites(self.make_goal())
            strategy = private(strategy, self.dp)
            # Weights that differ would scale noise and sensitivity unequally.
            return replace(strategy, weigh=IntegerWeights(1)) if self.dp == "distributed" else strategy
        if secure := self._secure_plan(strategy, epoch=1):
            return secured(strategy, secure)
        is_chosen = self.round_seconds is not None or is_auto
        if is_chosen and self.normalize_steps is None and strategy.sends == "delta":
            return replace(strategy, normalizes_steps=True)
        return strategy

    def make_goal(self) -> Goal:
        """Return what ends the federation; ConfigError when it cannot be judged by one evaluation."""
        goal = Goal(
            target=None if self.target is None else parse_target(self.target),
            best=None if self.best is None else parse_yardstick(self.best),
            **self.model_dump(include=set(_OF_THE_GOAL)),
        )
        if len({is_of_sites(each.metric) for each in goal.yardsticks}) > 1:
            raise ConfigError(
                f"target {self.target} and best {self.best}: one is measured at the sites and one by an "
                "evaluator; name both alike, such as sites.accuracy>=0.9 and sites.loss:min"
            )
        if self.min_delta and self.patience is None:
            raise ConfigError(f"min_delta {self.min_delta:g} has no effect without patience: give both")
        return goal

    def require_room(self, strategy: Strategy, layout: Layout) -> None:
        """Raise MessageTooLarge or ConfigError for a model that is too large for what the settings ask."""
        limit_bytes = self.max_message_bytes
        if plan := self.make_sealed_plan(strategy):
            require_sealable(layout, plan.only)
            require_sealed_fits(layout, plan, limit_bytes)
            return
        require_version_fits(layout, limit_bytes, is_averaged=self.average_versions > 0)
        if strategy.keeping:
            needed = strategy.moments_bytes(layout.size, workers=FEWEST_WORKERS)
            require_cache_fits(layout, needed, strategy.name, strategy.keeping.codec, limit_bytes)
        has_choice = "server_optimizer" in STRATEGIES[strategy.name].model_fields
        optimizer = self.server_optimizer if has_choice else strategy.name
        require_moments_fit(layout, len(strategy.moment_names), optimizer, limit_bytes)
        require_update_fits(layout, self.codec, limit_bytes)
        # A clipped update is held in float32.
        codec = "float32" if self.on_large_norm == "clip" else self.codec
        require_rule_fits(strategy, layout, codec, memory_mib=self.rule_memory)

    def room_for_cache(self, strategy: Strategy, layout: Layout) -> int:
        """Return how many bytes of a message are left for the workers' updates that a strategy keeps."""
        return self.max_message_bytes - strategy.moments_bytes(layout.size, workers=0)

    def make_commit_schedule(self, strategy: Strategy) -> CommitSchedule:
        """Return when to commit; ConfigError when the strategy's workers wait for each version."""
        every = self.commit_every or (1 if self.commit_after is None else MOST_STEPS_PER_COMMIT)
        if strategy.one_update_per_version and every != 1:
            raise ConfigError(
                f"{strategy.name} publishes each version, since its workers wait for it: leave out "
                f"commit_after, and commit_every must be 1, not {every}"
            )
        return CommitSchedule(every=every, after_s=self.commit_after, buffer_timeout_s=self.buffer_timeout)
