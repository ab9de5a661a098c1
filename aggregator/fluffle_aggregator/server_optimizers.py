"""What the server makes of the mean delta of a round: sgd, momentum, adam, yogi, adagrad. Pure.

The mean delta takes the place of a negative gradient: the model moves along it. Take `sgd` with a learning
rate of 1 for the plain rule of FedBuff and FedAvg, `momentum` when the rounds jump to and fro, one of the
adaptive ones when some parameters learn far more slowly than others (as embeddings do).

`apply` owns its arguments, like a donated buffer in JAX: it may overwrite the arrays of `model`, `delta` and
`moments`, and returns the model and the moments that replace them. A read-only array is refused by numpy. It
works in blocks, so a model of 400 MB needs no further vector of that size. The result depends on the
arguments alone: to continue from a record's moments gives the same bits as never to have stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import numpy as np

from fluffle.errors import ConfigError
from fluffle.model import Vector
from fluffle.vector_math import add_scaled, matching_blocks, scratch_block

# The optimizer's whole memory: float32 vectors of the model's size by name, "m" and "v"; none for sgd.
Moments = Mapping[str, Vector]


class ServerOptimizer(Protocol):
    """One rule that turns a mean delta into the next model."""

    @property
    def name(self) -> str:
        """The name in settings and records."""

    @property
    def starts(self) -> Mapping[str, float]:
        """The names of the moments, each with the value that all its elements start from."""

    def init(self, size: int) -> Moments:
        """Return the moments of a model of `size` elements before its first step."""

    def apply(self, model: Vector, delta: Vector, moments: Moments) -> tuple[Vector, Moments]:
        """Return the next model and moments; all three arguments are donated.

        Raises ValueError when the moments are those of another optimizer or of another size.
        """


@dataclass(frozen=True, slots=True)
class Sgd:
    """x <- x + eta * delta: with eta = 1 the plain rule of FedBuff and FedAvg."""

    learning_rate: float = 1.0
    name: ClassVar[str] = "sgd"
    starts: ClassVar[Mapping[str, float]] = {}

    def __str__(self) -> str:
        return f"sgd(learning_rate={self.learning_rate:g})"

    def init(self, size: int) -> Moments:
        """Return no moments."""
        return _fresh(self.starts, size)

    def apply(self, model: Vector, delta: Vector, moments: Moments) -> tuple[Vector, Moments]:
        """Return the next model."""
        _require_moments(self, moments)
        add_scaled(model, delta, self.learning_rate)
        return model, moments


@dataclass(frozen=True, slots=True)
class Momentum:
    """m <- beta1 * m + delta, x <- x + eta * m.

    Source: FedAvgM in Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification" (2019, arXiv 1909.06335).
    """

    learning_rate: float = 1.0
    beta1: float = 0.9
    name: ClassVar[str] = "momentum"
    starts: ClassVar[Mapping[str, float]] = {"m": 0.0}

    def __str__(self) -> str:
        return f"momentum(learning_rate={self.learning_rate:g}, beta1={self.beta1:g})"

    def init(self, size: int) -> Moments:
        """Return m = 0."""
        return _fresh(self.starts, size)

    def apply(self, model: Vector, delta: Vector, moments: Moments) -> tuple[Vector, Moments]:
        """Return the next model and m."""
        _require_moments(self, moments)
        scratch = scratch_block(model.size)
        for x, d, m in matching_blocks(model, delta, moments["m"]):
            np.multiply(m, np.float32(self.beta1), out=m)
            np.add(m, d, out=m)
            np.add(x, np.multiply(m, np.float32(self.learning_rate), out=scratch[: x.size]), out=x)
        return model, moments


@dataclass(frozen=True, slots=True)
class Adaptive:
    """m <- beta1 * m + (1 - beta1) * delta, v by the rule of that name, x <- x + eta * m / (sqrt(v) + tau).

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

    def init(self, size: int) -> Moments:
        """Return m = 0 and v = tau squared."""
        return _fresh(self.starts, size)

    def apply(self, model: Vector, delta: Vector, moments: Moments) -> tuple[Vector, Moments]:
        """Return the next model, m and v."""
        _require_moments(self, moments)
        advance = SECOND_MOMENTS[self.name]
        square_block, step_block = scratch_block(model.size), scratch_block(model.size)
        for x, d, m, v in matching_blocks(model, delta, moments.get("m", delta), moments["v"]):
            square, step = square_block[: x.size], step_block[: x.size]
            advance(v, np.square(d, out=square), step, self.beta2)
            if self.beta1:
                np.multiply(m, np.float32(self.beta1), out=m)
                np.add(m, np.multiply(d, np.float32(1.0 - self.beta1), out=d), out=m)
            np.add(np.sqrt(v, out=step), np.float32(self.tau), out=step)
            np.divide(m, step, out=step)
            np.add(x, np.multiply(step, np.float32(self.learning_rate), out=step), out=x)
        return model, moments


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

# By name, from the learning rate, beta1, beta2 and tau.
SERVER_OPTIMIZERS: Mapping[str, Callable[[float, float, float, float], ServerOptimizer]] = {
    "sgd": lambda learning_rate, *_: Sgd(learning_rate),
    "momentum": lambda learning_rate, beta1, *_: Momentum(learning_rate, beta1),
    **{name: partial(Adaptive, name) for name in SECOND_MOMENTS},
}


def make_server_optimizer(
    name: str, *, learning_rate: float, beta1: float | None = None, beta2: float = 0.99, tau: float = 1e-3
) -> ServerOptimizer:
    """Return the server optimizer of this name; it reads those of the parameters that stand in its formula.

    A `beta1` of None is 0.9, and for adagrad 0. Raises ConfigError, which names the setting (that of `beta1`
    is FLUFFLE_SERVER_MOMENTUM), when the name is unknown or a parameter is out of its range, read or not.
    """
    if name not in SERVER_OPTIMIZERS:
        known = ", ".join(SERVER_OPTIMIZERS)
        raise ConfigError(f"FLUFFLE_SERVER_OPTIMIZER must be one of {known}, not {name!r}")
    if beta1 is None:
        beta1 = 0.0 if name == "adagrad" else 0.9
    if not 0.0 < learning_rate < math.inf:
        raise ConfigError(f"FLUFFLE_SERVER_LEARNING_RATE must be finite and more than 0, not {learning_rate}")
    for setting, value in ("FLUFFLE_SERVER_MOMENTUM", beta1), ("beta2", beta2):
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"{setting} must be at least 0 and less than 1, not {value}")
    # Below this, tau squared comes near the end of float32's range, and v would start at 0.
    if not 1e-15 <= tau < math.inf:
        raise ConfigError(f"tau must be finite and at least 1e-15, not {tau}")
    return SERVER_OPTIMIZERS[name](learning_rate, beta1, beta2, tau)


def _fresh(starts: Mapping[str, float], size: int) -> Moments:
    return {name: np.full(size, start, np.float32) for name, start in starts.items()}


def _require_moments(optimizer: ServerOptimizer, moments: Moments) -> None:
    if set(moments) != set(optimizer.starts):
        expected, found = (", ".join(names) or "none" for names in (optimizer.starts, moments))
        raise ValueError(f"the moments of {optimizer.name} are {expected}, not {found}")
