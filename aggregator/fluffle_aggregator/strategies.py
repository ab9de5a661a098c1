"""How updates become the next global model: FedAsync, FedBuff and FedAvg. Pure.

Take FedAsync when the workers are few and each update should show at once, FedBuff when they are many or
noisy (an update counts as one of K), and FedAvg, which waits for a whole cohort, only to compare.

A strategy is frozen and its functions depend on their arguments alone: `init` gives an empty buffer, `fold`
adds one update to it, `step` makes the next model of it. The buffer is a running sum, so memory does not grow
with the number of updates. `fold` only reads the update's vector and keeps none of it: it may be a view of
the message's bytes. The buffer's own total is added to in place. `step` owns its arguments like a donated
buffer in JAX: it may overwrite the arrays of the model, the buffer and the moments, and returns what replaces
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from fluffle.compression import CompressedVector
from fluffle.errors import ConfigError
from fluffle.model import Vector
from fluffle.plan import Sends
from fluffle.vector_math import matching_blocks
from fluffle_aggregator.server_optimizers import Moments, ServerOptimizer, Sgd
from fluffle_aggregator.staleness import Discount

# Leaves a mean delta as it is: the plain formula of each strategy.
SGD = Sgd(learning_rate=1.0)


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What the weight of an update follows from.

    `most_examples` are the most that any worker's last update came from, `mean_examples` the mean over all
    workers.
    """

    staleness: int
    examples: int
    most_examples: int = 0
    mean_examples: float = 0.0

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"an update must come from at least 1 example, not {self.examples}")


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """The updates since the last step: their weighted sum, and how many there are.

    `weight` is the sum of their weights, and `size` what that would be if all of them were fresh.
    """

    total: Vector | None = None
    weight: float = 0.0
    size: float = 0.0
    count: int = 0

    def adding(self, vector: CompressedVector, weight: float, size: float) -> Buffer:
        """Return the buffer with one more vector in it; the weight is rounded once, to float32."""
        total = np.zeros(vector.size, np.float32) if self.total is None else self.total
        vector.add_to(total, weight)
        return Buffer(total, self.weight + float(np.float32(weight)), self.size + size, self.count + 1)

    def sum(self) -> Vector:
        """Return the weighted sum; raises ValueError when the buffer is empty."""
        if self.total is None:
            raise ValueError("an empty buffer makes no new model: fold an update first")
        return self.total


class Strategy(Protocol):
    """One rule of aggregation."""

    @property
    def name(self) -> str:
        """The name in settings and records."""

    @property
    def sends(self) -> Sends:
        """What a worker sends: its delta, or its weights."""

    @property
    def one_update_per_version(self) -> bool:
        """Whether a worker waits for a new version before it trains again."""

    @property
    def buffer_size(self) -> int:
        """The number of updates that make a full buffer."""

    @property
    def optimizer(self) -> ServerOptimizer:
        """What the mean delta is handed to; its moments travel from step to step."""

    def size_of(self, facts: UpdateFacts) -> float:
        """Return what an update counts for its examples, when it is fresh."""

    def weight_of(self, facts: UpdateFacts) -> float:
        """Return the factor that `fold` gives to an update."""

    def mixing_of(self, facts: UpdateFacts) -> float:
        """Return how far one update moves the statistics towards its own values, in (0, 1]."""

    def init(self) -> Buffer:
        """Return an empty buffer."""

    def fold(self, buffer: Buffer, vector: CompressedVector, facts: UpdateFacts) -> Buffer:
        """Return the buffer with one more update in it; the old buffer is donated, the vector only read."""

    def is_full(self, buffer: Buffer) -> bool:
        """Tell whether it is time for a step."""

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return the next model and moments from a full or a partial buffer; all three are donated.

        Raises ValueError when the buffer is empty.
        """


def _count_alike(_examples: float) -> float:
    return 1.0


# What an update counts by the number of its examples.
EXAMPLE_WEIGHTS: Mapping[str, Callable[[float], float]] = {
    "none": _count_alike,
    "sqrt": math.sqrt,
    "examples": float,
}


class _RunningSum:
    """What the strategies share: a buffer that is full after `buffer_size` updates, each with its weight."""

    __slots__ = ()

    def init(self) -> Buffer:
        """Return an empty buffer."""
        return Buffer()

    def fold(self: Strategy, buffer: Buffer, vector: CompressedVector, facts: UpdateFacts) -> Buffer:
        """Return the buffer with one more update in it."""
        return buffer.adding(vector, self.weight_of(facts), self.size_of(facts))

    def is_full(self: Strategy, buffer: Buffer) -> bool:
        """Tell whether it is time for a step."""
        return buffer.count >= self.buffer_size


@dataclass(frozen=True, slots=True)
class FedAsync(_RunningSum):
    """x <- (1 - a) * x + a * x_client, with a = alpha * s(staleness), for each update by itself.

    `mixing` is alpha. Weighed by examples, a is alpha * s(staleness) * n / n_max, where n_max are the most
    examples that any worker has: the largest site mixes in as in the paper, a smaller one less. Source: Xie,
    Koyejo and Gupta, "Asynchronous Federated Optimization" (2019, arXiv 1903.03934), Algorithm 1.
    """

    discount: Discount
    mixing: float = 0.6
    optimizer: ServerOptimizer = SGD
    weigh_by: str = "none"
    name: ClassVar[str] = "fedasync"
    sends: ClassVar[Sends] = "weights"
    one_update_per_version: ClassVar[bool] = False
    buffer_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.optimizer != SGD:
            raise ConfigError(
                "FLUFFLE_SERVER_OPTIMIZER must be sgd and FLUFFLE_SERVER_LEARNING_RATE 1 with fedasync, not "
                f"{self.optimizer}: FLUFFLE_MIXING is its learning rate, and fedbuff takes any optimizer"
            )

    def __str__(self) -> str:
        return f"fedasync(mixing={self.mixing:g}, discount={self.discount}, weigh_by={self.weigh_by})"

    def size_of(self, facts: UpdateFacts) -> float:
        """Return n / n_max, its square root, or 1."""
        count = EXAMPLE_WEIGHTS[self.weigh_by]
        return count(facts.examples) / count(max(facts.examples, facts.most_examples))

    def weight_of(self, facts: UpdateFacts) -> float:
        """Return alpha * s(staleness), times n / n_max if it is weighed by examples."""
        return self.mixing * self.discount(facts.staleness) * self.size_of(facts)

    def mixing_of(self, facts: UpdateFacts) -> float:
        """Return the same as `weight_of`."""
        return self.weight_of(facts)

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return (1 - a) * model + a * x_client; raises ValueError unless the buffer has one update."""
        if buffer.count > 1:
            raise ValueError(f"fedasync mixes in one update per step, not {buffer.count}")
        keep = np.float32(1.0 - buffer.weight)
        for x, mixed_in in matching_blocks(model, buffer.sum()):
            np.add(np.multiply(x, keep, out=x), mixed_in, out=x)
        return model, moments


@dataclass(frozen=True, slots=True)
class FedBuff(_RunningSum):
    """x <- x + eta * (1 / K) * sum of s(staleness_i) * delta_i, over the K updates in the buffer.

    The sum is divided by the number of updates, never by the sum of their discounts, which would cancel a
    staleness that all share. A partial buffer is divided by what it holds. Weighed by examples, it is
    x <- x + eta * (sum of n_i * s(staleness_i) * delta_i) / (sum of max(n_i, n_mean)), where n_mean is the
    mean over all workers: a buffer of small sites alone makes a small step. Any server optimizer may take the
    place of the learning rate eta.

    Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022, arXiv
    2106.06639), Algorithm 1.
    """

    discount: Discount
    buffer_size: int
    optimizer: ServerOptimizer = SGD
    weigh_by: str = "none"
    name: ClassVar[str] = "fedbuff"
    sends: ClassVar[Sends] = "delta"
    one_update_per_version: ClassVar[bool] = False

    def __str__(self) -> str:
        return (
            f"fedbuff(buffer_size={self.buffer_size}, discount={self.discount}, optimizer={self.optimizer}, "
            f"weigh_by={self.weigh_by})"
        )

    def size_of(self, facts: UpdateFacts) -> float:
        """Return max(n, n_mean), its square root, or 1."""
        return EXAMPLE_WEIGHTS[self.weigh_by](max(facts.examples, facts.mean_examples))

    def weight_of(self, facts: UpdateFacts) -> float:
        """Return s(staleness), times n if it is weighed by examples."""
        return self.discount(facts.staleness) * EXAMPLE_WEIGHTS[self.weigh_by](facts.examples)

    def mixing_of(self, facts: UpdateFacts) -> float:
        """Return s(staleness)."""
        return self.discount(facts.staleness)

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return what the server optimizer makes of the model and the discounted deltas' sum over K."""
        total = buffer.sum()
        mean = np.divide(total, np.float32(buffer.size), out=total)
        return self.optimizer.apply(model, mean, moments)


@dataclass(frozen=True, slots=True)
class FedAvg(_RunningSum):
    """x <- x + (sum of n_k * delta_k) / (sum of n_k), over a whole cohort that started from this version.

    With deltas against one base this is the mean of the clients' models, weighted by examples. `buffer_size`
    is the cohort. Any server optimizer may take the place of the plain sum (FedAvgM, FedAdam and so on).

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017,
    arXiv 1602.05629), Algorithm 1.
    """

    buffer_size: int
    optimizer: ServerOptimizer = SGD
    name: ClassVar[str] = "fedavg"
    sends: ClassVar[Sends] = "delta"
    one_update_per_version: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"fedavg(buffer_size={self.buffer_size}, optimizer={self.optimizer})"

    def size_of(self, facts: UpdateFacts) -> float:
        """Return n_k."""
        return float(facts.examples)

    def weight_of(self, facts: UpdateFacts) -> float:
        """Return n_k; raises ValueError when the update did not start from this version."""
        _require_fresh(facts.staleness)
        return self.size_of(facts)

    def mixing_of(self, facts: UpdateFacts) -> float:
        """Return 1: the mean of the cohort replaces the statistics."""
        _require_fresh(facts.staleness)
        return 1.0

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return what the server optimizer makes of the model and the deltas' weighted mean."""
        total = buffer.sum()
        mean = np.divide(total, np.float32(buffer.weight), out=total)
        return self.optimizer.apply(model, mean, moments)


# By name, from the buffer size, alpha, the discount, the server optimizer, and how examples count.
STRATEGIES: Mapping[str, Callable[[int, float, Discount, ServerOptimizer, str], Strategy]] = {
    "fedasync": lambda _size, mixing, discount, optimizer, by: FedAsync(discount, mixing, optimizer, by),
    "fedbuff": lambda size, _mixing, discount, optimizer, by: FedBuff(discount, size, optimizer, by),
    "fedavg": lambda size, _mixing, _discount, optimizer, _by: FedAvg(size, optimizer),
}


def make_strategy(
    name: str,
    *,
    buffer_size: int,
    mixing: float,
    discount: Discount,
    optimizer: ServerOptimizer,
    weigh_by: str = "none",
) -> Strategy:
    """Return the strategy of this name; it reads those of the settings that stand in its formula.

    FedAsync reads `mixing`, `discount` and `weigh_by`; FedBuff `buffer_size`, `discount` and `weigh_by`;
    FedAvg `buffer_size`, which is its cohort. Raises ConfigError, which names the setting, when one is
    unknown or out of its range, whether it is read or not, or when FedAsync is given a server optimizer.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"FLUFFLE_STRATEGY must be one of {', '.join(STRATEGIES)}, not {name!r}")
    if buffer_size < 1:
        raise ConfigError(f"FLUFFLE_BUFFER_SIZE must be at least 1, not {buffer_size}")
    if not 0.0 < mixing <= 1.0:
        raise ConfigError(f"FLUFFLE_MIXING must be more than 0 and at most 1, not {mixing}")
    if weigh_by not in EXAMPLE_WEIGHTS:
        raise ConfigError(f"FLUFFLE_WEIGH_BY must be one of {', '.join(EXAMPLE_WEIGHTS)}, not {weigh_by!r}")
    return STRATEGIES[name](buffer_size, mixing, discount, optimizer, weigh_by)


def _require_fresh(staleness: int) -> None:
    if staleness != 0:
        raise ValueError(f"fedavg takes updates of its own version only, not of staleness {staleness}")
