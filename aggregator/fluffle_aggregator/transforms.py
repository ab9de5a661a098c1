"""What becomes of a buffer's delta before it moves the model: sgd, momentum, adam, yogi, adagrad. Pure.

The delta takes the place of a negative gradient: the model moves along it. Take `sgd` with a learning rate of
1 for the plain rule of FedBuff and FedAvg, `momentum` when the deltas jump to and fro, one of the adaptive
ones when some parameters learn far more slowly than others (as embeddings do).

A transform is frozen: `apply` depends on its arguments alone, so to continue from a record's moments gives
the same bits as never to have stopped. It works in place and in blocks: a model of 400 MB needs no further
vector of that size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field

from fluffle.model import Vector
from fluffle.vector_math import matching_blocks, scratch_block

# A server's whole memory between steps: float32 vectors of the model's size by name, such as "m" and "v".
Moments = Mapping[str, Vector]


class Transform(Protocol):
    """One step of the way from a buffer's delta to the change of the model."""

    @property
    def starts(self) -> Mapping[str, float]:
        """The names of the moments, each with the value that all of its elements start from."""

    def apply(self, delta: Vector, moments: Moments, staleness: int = 0) -> None:
        """Overwrite a delta, and this transform's moments, with what becomes of them.

        `staleness` is the greatest of the buffer's updates.
        """


@dataclass(frozen=True, slots=True)
class Sgd:
    """delta <- eta * delta: with eta = 1 the plain rule of FedBuff and FedAvg."""

    learning_rate: float = 1.0
    name: ClassVar[str] = "sgd"
    starts: ClassVar[Mapping[str, float]] = {}

    def __str__(self) -> str:
        return f"sgd(learning_rate={self.learning_rate:g})"

    def apply(self, delta: Vector, _moments: Moments, _staleness: int = 0) -> None:
        """See Transform."""
        if self.learning_rate != 1:
            np.multiply(delta, np.float32(self.learning_rate), out=delta)


@dataclass(frozen=True, slots=True)
class Momentum:
    """m <- beta1 * m + delta, delta <- eta * m.

    Source: FedAvgM in Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification" (2019, arXiv 1909.06335).
    """

    learning_rate: float = 1.0
    beta1: float = 0.9
    name: ClassVar[str] = "momentum"
    starts: ClassVar[Mapping[str, float]] = {"m": 0.0}

    def __str__(self) -> str:
        return f"momentum(learning_rate={self.learning_rate:g}, beta1={self.beta1:g})"

    def apply(self, delta: Vector, moments: Moments, _staleness: int = 0) -> None:
        """See Transform."""
        for d, m in matching_blocks(delta, moments["m"]):
            np.multiply(m, np.float32(self.beta1), out=m)
            np.add(m, d, out=m)
            np.multiply(m, np.float32(self.learning_rate), out=d)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """m <- beta1 * m + (1 - beta1) * delta, v by the rule of that name, delta <- eta * m / (sqrt(v) + tau).

    v starts at tau squared, and neither moment is corrected for its start. With beta1 = 0, the default of
    adagrad in the paper's experiments, m is the delta itself, and is not kept.

    Source: Reddi et al., "Adaptive Federated Optimization" (2021, arXiv 2003.00295), Algorithm 2.
    """

    name: str
    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __str__(self) -> str:
        rates = f"learning_rate={self.learning_rate:g}, beta1={self.beta1:g}"
        beta2 = "" if self.name == "adagrad" else f", beta2={self.beta2:g}"
        return f"{self.name}({rates}{beta2}, tau={self.tau:g})"

    @property
    def starts(self) -> Mapping[str, float]:
        """The moments m, if it is kept, and v, and what they start from."""
        return {"m": 0.0, "v": self.tau**2} if self.beta1 else {"v": self.tau**2}

    def apply(self, delta: Vector, moments: Moments, _staleness: int = 0) -> None:
        """See Transform."""
        advance = SECOND_MOMENTS[self.name]
        square_block, step_block = scratch_block(delta.size), scratch_block(delta.size)
        for d, m, v in matching_blocks(delta, moments.get("m", delta), moments["v"]):
            square, step = square_block[: d.size], step_block[: d.size]
            advance(v, np.square(d, out=square), step, self.beta2)
            if self.beta1:
                np.multiply(m, np.float32(self.beta1), out=m)
                np.add(m, np.multiply(d, np.float32(1.0 - self.beta1), out=d), out=m)
            np.add(np.sqrt(v, out=step), np.float32(self.tau), out=step)
            np.divide(m, step, out=step)
            np.multiply(step, np.float32(self.learning_rate), out=d)


def _adam(v: Vector, square: Vector, _scratch: Vector, beta2: float) -> None:
    """Move v to beta2 * v + (1 - beta2) * square."""
    np.multiply(v, np.float32(beta2), out=v)
    np.add(v, np.multiply(square, np.float32(1.0 - beta2), out=square), out=v)


def _yogi(v: Vector, square: Vector, scratch: Vector, beta2: float) -> None:
    """Move v to v - (1 - beta2) * square * sign(v - square)."""
    sign = np.sign(np.subtract(v, square, out=scratch), out=scratch)
    np.multiply(square, np.float32(1.0 - beta2), out=square)
    np.subtract(v, np.multiply(square, sign, out=square), out=v)


def _adagrad(v: Vector, square: Vector, _scratch: Vector, _beta2: float) -> None:
    """Move v to v + square."""
    np.add(v, square, out=v)


# Each moves v by the square of the delta, in place; the square and the scratch block may be overwritten.
SECOND_MOMENTS: Mapping[str, Callable[[Vector, Vector, Vector, float], None]] = {
    "adam": _adam,
    "yogi": _yogi,
    "adagrad": _adagrad,
}
ServerOptimizer = Sgd | Momentum | Adaptive


class ServerRate(BaseModel):
    """The setting that every server optimizer reads."""

    server_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Learning rate of the server optimizer. Default: 1; 1.5 for reuse with sgd, and 0.01 for "
        "fadas and fedac.",
    )


class ServerRateSettings(ServerRate):
    """The settings of a server optimizer with momentum."""

    server_momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="beta1 of the server optimizer. Default: 0.9, 0.6 for fedac and 0 for adagrad.",
    )


class ServerOptimizerSettings(ServerRateSettings):
    """The settings of a strategy whose delta goes through a server optimizer of choice."""

    server_optimizer: Literal["sgd", "momentum", "adam", "yogi", "adagrad"] = Field(
        "sgd", description="Server optimizer: how the mean update changes the model."
    )

    def make_optimizer(self, default_rate: float = 1.0) -> ServerOptimizer:
        """Return the server optimizer."""
        name, beta1 = self.server_optimizer, self.server_momentum
        rate = default_rate if self.server_learning_rate is None else self.server_learning_rate
        if beta1 is None:
            beta1 = 0.0 if name == "adagrad" else 0.9
        if name == "sgd":
            return Sgd(rate)
        return Momentum(rate, beta1) if name == "momentum" else Adaptive(name, rate, beta1)


def starting_moments(starts: Mapping[str, float], size: int) -> Moments:
    """Return the moments of a model of `size` elements before its first step, from their first values."""
    return {name: np.full(size, start, np.float32) for name, start in starts.items()}
