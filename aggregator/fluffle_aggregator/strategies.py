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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from fluffle.compression import CompressedVector
from fluffle.errors import ConfigError
from fluffle.model import Vector
from fluffle.plan import Sends
from fluffle.vector_math import matching_blocks
from fluffle_aggregator.kernels import add_weighted
from fluffle_aggregator.server_optimizers import Moments, ServerOptimizer, Sgd
from fluffle_aggregator.staleness import Discount

# Leaves a mean delta as it is: the plain formula of each strategy.
SGD = Sgd(learning_rate=1.0)


@dataclass(frozen=True, slots=True)
class Buffer:
    """The updates since the last step: their weighted sum, the sum of the weights, and their number."""

    total: Vector | None = None
    weight: float = 0.0
    count: int = 0

    def adding(self, vector: CompressedVector, weight: float) -> Buffer:
        """Return the buffer with one more vector in it; the weight is rounded once, to float32."""
        total = np.zeros(vector.size, np.float32) if self.total is None else self.total
        add_weighted(total, vector, weight)
        return Buffer(total, self.weight + float(np.float32(weight)), self.count + 1)

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

    def weight(self, *, staleness: int, examples: int) -> float:
        """Return the factor that `fold` gives to an update."""

    def mixing_of(self, staleness: int) -> float:
        """Return how far one update moves the statistics towards its own values, in (0, 1]."""

    def init(self) -> Buffer:
        """Return an empty buffer."""

    def fold(self, buffer: Buffer, vector: CompressedVector, *, staleness: int, examples: int) -> Buffer:
        """Return the buffer with one more update in it; the old buffer is donated, the vector only read."""

    def is_full(self, buffer: Buffer) -> bool:
        """Tell whether it is time for a step."""

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return the next model and moments from a full or a partial buffer; all three are donated.

        Raises ValueError when the buffer is empty.
        """


class _RunningSum:
    """What the strategies share: a buffer that is full after `buffer_size` updates, each with its weight."""

    __slots__ = ()

    def init(self) -> Buffer:
        """Return an empty buffer."""
        return Buffer()

    def fold(
        self: Strategy, buffer: Buffer, vector: CompressedVector, *, staleness: int, examples: int
    ) -> Buffer:
        """Return the buffer with one more update in it."""
        return buffer.adding(vector, self.weight(staleness=staleness, examples=examples))

    def is_full(self: Strategy, buffer: Buffer) -> bool:
        """Tell whether it is time for a step."""
        return buffer.count >= self.buffer_size


@dataclass(frozen=True, slots=True)
class FedAsync(_RunningSum):
    """x <- (1 - a) * x + a * x_client, with a = alpha * s(staleness), for each update by itself.

    `mixing` is alpha. Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019, arXiv
    1903.03934), Algorithm 1.
    """

    discount: Discount
    mixing: float = 0.6
    optimizer: ServerOptimizer = SGD
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
        return f"fedasync(mixing={self.mixing:g}, discount={self.discount})"

    def weight(self, *, staleness: int, examples: int) -> float:
        """Return alpha * s(staleness)."""
        _require_examples(examples)
        return self.mixing_of(staleness)

    def mixing_of(self, staleness: int) -> float:
        """Return alpha * s(staleness)."""
        return self.mixing * self.discount(staleness)

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
    staleness that all share. A partial buffer is divided by what it holds. Any server optimizer may take the
    place of the learning rate eta.

    Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022, arXiv
    2106.06639), Algorithm 1.
    """

    discount: Discount
    buffer_size: int
    optimizer: ServerOptimizer = SGD
    name: ClassVar[str] = "fedbuff"
    sends: ClassVar[Sends] = "delta"
    one_update_per_version: ClassVar[bool] = False

    def __str__(self) -> str:
        return (
            f"fedbuff(buffer_size={self.buffer_size}, discount={self.discount}, optimizer={self.optimizer})"
        )

    def weight(self, *, staleness: int, examples: int) -> float:
        """Return s(staleness)."""
        _require_examples(examples)
        return self.discount(staleness)

    def mixing_of(self, staleness: int) -> float:
        """Return s(staleness)."""
        return self.discount(staleness)

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return what the server optimizer makes of the model and the discounted deltas' sum over K."""
        total = buffer.sum()
        mean = np.divide(total, np.float32(buffer.count), out=total)
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

    def weight(self, *, staleness: int, examples: int) -> float:
        """Return n_k; raises ValueError when the update did not start from this version."""
        _require_fresh(staleness)
        _require_examples(examples)
        return float(examples)

    def mixing_of(self, staleness: int) -> float:
        """Return 1: the mean of the cohort replaces the statistics."""
        _require_fresh(staleness)
        return 1.0

    def step(self, model: Vector, buffer: Buffer, moments: Moments) -> tuple[Vector, Moments]:
        """Return what the server optimizer makes of the model and the deltas' weighted mean."""
        total = buffer.sum()
        mean = np.divide(total, np.float32(buffer.weight), out=total)
        return self.optimizer.apply(model, mean, moments)


# By name, from the buffer size, alpha, the discount and the server optimizer.
STRATEGIES: Mapping[str, Callable[[int, float, Discount, ServerOptimizer], Strategy]] = {
    "fedasync": lambda _size, mixing, discount, optimizer: FedAsync(discount, mixing, optimizer),
    "fedbuff": lambda size, _mixing, discount, optimizer: FedBuff(discount, size, optimizer),
    "fedavg": lambda size, _mixing, _discount, optimizer: FedAvg(size, optimizer),
}


def make_strategy(
    name: str, *, buffer_size: int, mixing: float, discount: Discount, optimizer: ServerOptimizer
) -> Strategy:
    """Return the strategy of this name; it reads those of the settings that stand in its formula.

    FedAsync reads `mixing` and `discount`, FedBuff `buffer_size` and `discount`, FedAvg `buffer_size`, which
    is its cohort. Raises ConfigError, which names the setting, when one is unknown or out of its range,
    whether it is read or not, or when FedAsync is given a server optimizer.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"FLUFFLE_STRATEGY must be one of {', '.join(STRATEGIES)}, not {name!r}")
    if buffer_size < 1:
        raise ConfigError(f"FLUFFLE_BUFFER_SIZE must be at least 1, not {buffer_size}")
    if not 0.0 < mixing <= 1.0:
        raise ConfigError(f"FLUFFLE_MIXING must be more than 0 and at most 1, not {mixing}")
    return STRATEGIES[name](buffer_size, mixing, discount, optimizer)


def _require_fresh(staleness: int) -> None:
    if staleness != 0:
        raise ValueError(f"fedavg takes updates of its own version only, not of staleness {staleness}")


def _require_examples(examples: int) -> None:
    if examples < 1:
        raise ValueError(f"an update must come from at least 1 example, not {examples}")
