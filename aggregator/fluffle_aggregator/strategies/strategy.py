"""A strategy of aggregation, composed of how updates weigh, a rule, and transforms. Pure.

An update's vector goes through it in this order: `weigh` says what it counts, an accumulator of the `rule`
collects a buffer of them, the rule makes one delta of the buffer, the `transforms` change that delta, and the
model moves by it.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from fluffle.errors import ConfigError
from fluffle.model import Vector
from fluffle.plan import Sends
from fluffle.record import CachedUpdate, MomentsRecord
from fluffle.vector_math import matching_blocks
from fluffle_aggregator.accumulators import FEWEST_TO_COMPARE, Accumulator
from fluffle_aggregator.cached_buffers import CachedBuffer, CachedRule
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.rules import MEAN, MEAN_RULE, Rule, parse_rule
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.staleness import Discount, parse_discount
from fluffle_aggregator.transforms import Moments, Transform, starting_moments
from fluffle_aggregator.update_cache import Keeping, UpdateCache


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What the weight of an update follows from.

    `most_examples` are the most that any worker's last update came from, `mean_examples` the mean over all
    workers, of which there are `workers` with this update's. `repeats` is the number of updates that its
    worker has among the last ones, see `throttle.py`. `agreement` is the cosine of the update and of the
    moment that the strategy names its `direction`.
    """

    staleness: int
    examples: int
    most_examples: int = 0
    mean_examples: float = 0.0
    repeats: int = 0
    workers: int = 1
    agreement: float = 1.0

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"an update must come from at least 1 example, not {self.examples}")


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to aggregate.

    `sends` is what a worker sends: its delta, or its weights, which then take the place of a share of the
    model. `buffer_size` is the number of updates in one step. With `one_update_per_version` a worker waits
    for a new version before it trains again. If it `throttles`, `weigh` reads how often a worker repeats,
    and with a `direction` how well an update agrees with the moment of that name.
    With `keeping` each worker's last update is kept, and `cached_rule` takes the place of `rule`. If it
    `normalizes_steps`, deltas are scaled to the usual number of local steps, see `local_steps.py`. If it
    `is_private`, sums get noise, and no worker has more updates in them than that covers. If it `is_sealed`,
    it adds up what it cannot read.
    """

    name: str
    weigh: Callable[[UpdateFacts], Weight]
    buffer_size: int = 1
    rule: Rule = MEAN_RULE
    transforms: tuple[Transform, ...] = ()
    sends: Sends = "delta"
    one_update_per_version: bool = False
    keeping: Keeping | None = None
    cached_rule: CachedRule | None = None
    throttles: bool = False
    direction: str = ""
    normalizes_steps: bool = False
    is_private: bool = False
    is_sealed: bool = False

    def __str__(self) -> str:
        how = (self.keeping, self.cached_rule) if self.keeping else (f"rule={self.rule}",)
        steps = "normalize_steps" * self.normalizes_steps
        parts = f"buffer_size={self.buffer_size}", self.weigh, *how, *self.transforms, steps
        return f"{self.name}({', '.join(filter(None, map(str, parts)))})"

    @property
    def moment_names(self) -> tuple[str, ...]:
        """The names of the vectors that are kept from step to step."""
        return tuple(self._starts)

    @property
    def _starts(self) -> Mapping[str, float]:
        """The value that all elements of each of these vectors start from."""
        return {name: start for each in self.transforms for name, start in each.starts.items()}

    def starting_moments(self, size: int) -> Moments:
        """Return the moments of a model of `size` elements before its first step."""
        return starting_moments(self._starts, size)

    def moments_bytes(self, size: int, *, workers: int) -> int:
        """Return how many bytes go beside each version, of a model of `size` elements and so many workers."""
        kept = self.keeping.size_bytes(size) if self.keeping else 0
        return 4 * size * len(self.moment_names) + workers * kept

    def moments_from(self, kept: MomentsRecord | None, size: int) -> Moments:
        """Return moments to go on with: copies of those that were kept, or else starting ones."""
        if kept is None:
            return self.starting_moments(size)
        return {name: vector.copy() for name, vector in kept.vectors.items()}

    def fits(self, moments: MomentsRecord, size: int) -> bool:
        """Return whether a model of `size` elements can go on with these moments."""
        is_kept = self.keeping.fits(moments.cached, size) if self.keeping else not moments.cached
        return is_kept and set(moments.vectors) == set(self.moment_names)

    def make_cache(
        self, size: int, cached: Iterable[CachedUpdate], room_bytes: int | None
    ) -> UpdateCache | None:
        """Return the cache of workers' updates that goes on with these; None when none are kept.

        The model has `size` elements, and `room_bytes` is the room for the updates; None means no limit.
        """
        if self.keeping is None or self.cached_rule is None:
            return None
        most = None if room_bytes is None else room_bytes // self.keeping.size_bytes(size)
        return self.cached_rule.open(self.keeping, size, cached, most_workers=most)

    def empty_buffer(self, cache: UpdateCache | None) -> Accumulator | CachedBuffer:
        """Return a buffer that holds no update yet."""
        if cache is None or self.cached_rule is None:
            return self.rule.zero()
        return self.cached_rule.zero(cache)

    def step(self, model: Vector, accumulator: Accumulator | CachedBuffer, moments: Moments) -> None:
        """Move the model by what the accumulator holds; model, accumulator and moments are overwritten.

        An element that no update has keeps its value and its moments. Raises ValueError when the accumulator
        is empty or of another size, or when the moments are those of another strategy.
        """
        if set(moments) != set(self.moment_names):
            expected, found = (", ".join(names) or "none" for names in (self.moment_names, moments))
            raise ValueError(f"the moments of {self.name} are {expected}, not {found}")
        # Before it is closed, which may use up what it holds.
        sections, delta = accumulator.sections(), accumulator.close()
        if delta.shape != model.shape:
            raise ValueError(f"vectors of one model must have one shape, not {model.shape}, {delta.shape}")
        for section in sections:
            x, change = model[section.elements], delta[section.elements]
            of_section = {name: moment[section.elements] for name, moment in moments.items()}
            for transform in self.transforms:
                transform.apply(change, of_section, section.totals.staleness)
            keep = np.float32(1.0 - section.totals.factor if self.sends == "weights" else 1.0)
            for part, moved in matching_blocks(x, change):
                if keep != 1:
                    np.multiply(part, keep, out=part)
                np.add(part, moved, out=part)
        if isinstance(accumulator, CachedBuffer):
            accumulator.cache.follow(delta)


class StrategyKind(BaseModel):
    """The settings of one strategy, and how it is made of them.

    `named` is its name in settings. A synchronous strategy waits for every worker of its cohort.
    """

    named: ClassVar[str]
    summary: ClassVar[str]
    is_synchronous: ClassVar[bool] = False

    @abstractmethod
    def make(self) -> Strategy:
        """Return the strategy. Raises ConfigError when its settings do not go together."""


class WeighBySettings(StrategyKind):
    """The settings of a strategy that may weigh updates by their examples."""

    weigh_by: Literal["none", "sqrt", "examples"] = Field(
        "examples",
        description="Weight of an update by its number of examples: examples is proportional, sqrt uses the "
        "square root, none weighs all updates the same, as in the papers. fedavg with rule mean always uses "
        "examples.",
    )

    def weigh_by_under(self, rule: Rule) -> str:
        """Return what updates weigh by under this rule. Raises ConfigError when the setting has no effect."""
        if not rule.holds_vectors:
            return self.weigh_by
        if self.weigh_by not in ("none", WeighBySettings.model_fields["weigh_by"].default):
            raise ConfigError(
                f"weigh_by {self.weigh_by} has no effect with rule {rule}, which counts each update alike: "
                "leave it out"
            )
        return "none"


class DiscountSettings(WeighBySettings):
    """The settings of a strategy whose workers do not wait for each other."""

    staleness: Annotated[str, readable_by(parse_discount)] = Field(
        "polynomial:0.5",
        description="How much a stale update counts: constant, polynomial[:EXPONENT] (0.5), hinge[:A][:B] "
        "(10 and 4) or adaptive[:TAU_C] (4). The numbers in parentheses are the defaults.",
    )
    throttle: float = Field(
        1.0,
        ge=1,
        description="Divide the weight of an update by this number to the power of how many updates its "
        "worker has among the last n - 1, of n workers: fast workers then rule less. 1.1 to 1.5 are usual, 1 "
        "is off. It remembers who sent the last 50 updates.",
    )


class StepsSettings(BaseModel):
    """The settings of a strategy of deltas, which came from different numbers of local steps."""

    normalize_steps: bool | None = Field(
        None,
        description="FedNova: divide each update by its number of local steps, and multiply it by the mean "
        "number of all workers, so that sites that make more steps do not pull the model further. Default: "
        "on with round_seconds and batch_size auto, else off.",
    )


class BufferSize(StepsSettings):
    """The settings of a strategy that makes each version of some updates."""

    buffer_size: int | None = Field(
        None,
        ge=1,
        description="Number of updates in one version: K of reuse, fedbuff, ace, ca2fl and fedac, M of "
        "fadas, the cohort size of fedavg. Default: 1 for reuse, and 4 for the others.",
    )

    def updates_per_version(self, default: int = 4) -> int:
        """Return the number of updates in one version."""
        return default if self.buffer_size is None else self.buffer_size


class BufferSettings(BufferSize):
    """The settings of a strategy that combines the updates of each version by a rule."""

    rule: Annotated[str, readable_by(parse_rule)] = Field(
        MEAN,
        description="How the updates of a buffer are combined: mean; or, against broken and hostile workers, "
        "median or trimmed-mean[:SHARE], which drops this SHARE (0.2) of the largest and of the smallest "
        "values of each element. These two count all updates alike, so leave weigh_by out (anything but none "
        "or examples is refused), and they hold all updates of a buffer in memory.",
    )
    rule_memory: float = Field(
        1024.0,
        gt=0,
        description="MiB of memory that the updates of one buffer may take with median or trimmed-mean.",
    )

    def make_rule(self) -> Rule:
        """Return the rule. Raises ConfigError when the buffer is too small for it."""
        rule = parse_rule(self.rule)
        count = self.updates_per_version()
        if rule.holds_vectors and count < FEWEST_TO_COMPARE:
            raise ConfigError(
                f"rule {rule} needs buffer_size {FEWEST_TO_COMPARE} or more, not {count}: of two "
                "updates nobody can say which one is the outlier"
            )
        return rule


def _count_alike(_examples: float) -> float:
    return 1.0


# What an update counts by the number of its examples.
EXAMPLE_WEIGHTS: Mapping[str, Callable[[float], float]] = {
    "none": _count_alike,
    "sqrt": math.sqrt,
    "examples": float,
}


@dataclass(frozen=True, slots=True)
class Discounted:
    """What the asynchronous strategies weigh by; as text, their settings."""

    discount: Discount
    weigh_by: str = "none"
    throttle: float = 1.0

    def __str__(self) -> str:
        throttle = "" if self.throttle == 1 else f", throttle={self.throttle:g}"
        return f"discount={self.discount}, weigh_by={self.weigh_by}{throttle}"

    def discount_of(self, facts: UpdateFacts) -> float:
        """Return what follows from an update's staleness and its worker's repeats, in (0, 1]."""
        return self.discount(facts.staleness) * float(self.throttle**-facts.repeats)
