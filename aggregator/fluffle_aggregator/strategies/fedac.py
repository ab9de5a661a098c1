"""FedAC: updates count by how well they agree with the server's direction.

Take it where stale updates mislead. It keeps two vectors of the model's size (m and v) beside the record,
however many workers there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fluffle.model import Vector
from fluffle.vector_math import matching_blocks, scratch_block
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.fedbuff import DiscountedMean
from fluffle_aggregator.strategies.strategy import BufferSize, Strategy, UpdateFacts, WeighBySettings
from fluffle_aggregator.transforms import Moments, ServerRateSettings

LEARNING_RATE = 0.01
LEAST_AGREEMENT = 0.1


@dataclass(frozen=True, slots=True)
class Agreement(DiscountedMean):
    """w over w with w = max(cos, 0.1), times the number of examples when weighed by them.

    cos is that of the update and the server's direction m; 1 before the first step.
    """

    def __str__(self) -> str:
        return f"agreement, weigh_by={self.weigh_by}"

    def __call__(self, facts: UpdateFacts) -> Weight:
        """Return what an update counts."""
        weight = DiscountedMean.__call__(self, facts)
        w = weight.factor * max(facts.agreement, LEAST_AGREEMENT)
        return replace(weight, factor=w, divisor=w)


@dataclass(frozen=True, slots=True)
class ProspectiveMomentum:
    """Move along the momentum that the next step would begin with, over the root of the second moment.

    m <- beta1 * m + (1 - beta1) * delta, v <- beta2 * v + (1 - beta2) * delta ** 2,
    delta <- eta * (beta1 * m + (1 - beta1) * delta) / (sqrt(v) + eps). Both moments start at 0, and none is
    corrected for its start.
    """

    learning_rate: float = LEARNING_RATE
    beta1: float = 0.6
    beta2: float = 0.9
    epsilon: float = 1e-8
    starts: ClassVar[Mapping[str, float]] = {"m": 0.0, "v": 0.0}

    def __str__(self) -> str:
        return (
            f"prospective(learning_rate={self.learning_rate:g}, beta1={self.beta1:g}, "
            f"beta2={self.beta2:g}, epsilon={self.epsilon:g})"
        )

    def apply(self, delta: Vector, moments: Moments, _staleness: int = 0) -> None:
        """See Transform."""
        scratch = scratch_block(delta.size)
        for d, m, v in matching_blocks(delta, moments["m"], moments["v"]):
            block = scratch[: d.size]
            np.multiply(v, np.float32(self.beta2), out=v)
            np.multiply(np.square(d, out=block), np.float32(1.0 - self.beta2), out=block)
            np.add(v, block, out=v)
            np.multiply(d, np.float32(1.0 - self.beta1), out=d)
            np.add(np.multiply(m, np.float32(self.beta1), out=m), d, out=m)
            np.add(np.multiply(m, np.float32(self.beta1), out=block), d, out=d)
            np.add(np.sqrt(v, out=block), np.float32(self.epsilon), out=block)
            np.multiply(np.divide(d, block, out=d), np.float32(self.learning_rate), out=d)


class FedAcSettings(WeighBySettings, BufferSize, ServerRateSettings):
    """D = sum of w_i * delta_i / sum of w_i over the K updates in the buffer, and a ProspectiveMomentum step.

    The paper's third part is left out: control variates, which correct the gradients at the workers, would
    cost each worker twice as many bytes in both directions.

    Source: Zang, Xue, Ou, Chu, Du and Long, "Efficient Asynchronous Federated Learning with Prospective
    Momentum Aggregation and Fine-Grained Correction" (AAAI 2024), FedAC. Only its abstract could be read: an
    update weighs by the similarity of its direction and the server's, and the step is a prospective weighted
    momentum with an adaptive rate. The formulas and the constants 0.1, 0.6, 0.9 and 1e-8 are those of a
    benchmark of others (github.com/boyi-liu/AFL-Lib, alg/fedac.py). That code takes x_t - x_base for the
    server's direction, which is 0 for a fresh update and would need the recent versions; here it is m, the
    moving average of the steps.
    """

    named: ClassVar[str] = "fedac"
    summary: ClassVar[str] = "a buffer at a time, weighed by agreement with the server's direction"

    def make(self) -> Strategy:
        """See StrategyKind."""
        step = ProspectiveMomentum(
            LEARNING_RATE if self.server_learning_rate is None else self.server_learning_rate,
            0.6 if self.server_momentum is None else self.server_momentum,
        )
        return Strategy(
            FedAcSettings.named,
            Agreement(parse_discount("constant"), self.weigh_by),
            self.updates_per_version(),
            transforms=(step,),
            direction="m",
            normalizes_steps=bool(self.normalize_steps),
        )
