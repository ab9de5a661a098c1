"""FADAS: an adaptive server step that shrinks when a buffer is stale. Take it when delays are large.

It is also for models that are trained with Adam, such as transformers. It keeps three vectors of the model's
size (m, v and v_hat) beside the record, however many workers there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from fluffle.model import Vector
from fluffle.vector_math import matching_blocks, scratch_block
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.fedbuff import DiscountedMean
from fluffle_aggregator.strategies.strategy import BufferSettings, Strategy, WeighBySettings
from fluffle_aggregator.transforms import Moments, ServerRateSettings

LEARNING_RATE = 0.01


@dataclass(frozen=True, slots=True)
class DelayAdaptiveAmsGrad:
    """Move along m / (sqrt(v_hat) + eps), at a rate that follows from the buffer's greatest staleness.

    m <- beta1 * m + (1 - beta1) * delta, v <- beta2 * v + (1 - beta2) * delta ** 2, v_hat <- max(v_hat, v),
    delta <- eta_t * m / (sqrt(v_hat) + eps). All moments start at 0, and none is corrected for its start.

    eta_t is eta up to a staleness of `delay_threshold`, and eta / staleness beyond. The paper prints
    min(eta, 1 / staleness) beyond, which changes nothing for a rate as small as those of its experiments; the
    authors' code (github.com/yujiaw98/FADAS, g_delay_adaptive.py) divides. For eta <= 1 the quotient is never
    above what the paper prints.

    Source: Wang, Wang, Lu and Chen, "FADAS: Towards Federated Adaptive Asynchronous Optimization" (ICML 2024,
    arXiv 2407.18365), Algorithm 1 and its delay-adaptive learning rate.
    """

    learning_rate: float = LEARNING_RATE
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    delay_threshold: int = 1
    starts: ClassVar[Mapping[str, float]] = {"m": 0.0, "v": 0.0, "v_hat": 0.0}

    def __str__(self) -> str:
        return (
            f"amsgrad(learning_rate={self.learning_rate:g}, beta1={self.beta1:g}, beta2={self.beta2:g}, "
            f"epsilon={self.epsilon:g}, delay_threshold={self.delay_threshold})"
        )

    def rate(self, staleness: int) -> float:
        """Return eta_t for a buffer of this greatest staleness."""
        return self.learning_rate / (staleness if staleness > self.delay_threshold else 1)

    def apply(self, delta: Vector, moments: Moments, staleness: int = 0) -> None:
        """See Transform."""
        rate = np.float32(self.rate(staleness))
        scratch = scratch_block(delta.size)
        for d, m, v, v_hat in matching_blocks(delta, moments["m"], moments["v"], moments["v_hat"]):
            block = scratch[: d.size]
            np.multiply(v, np.float32(self.beta2), out=v)
            np.multiply(np.square(d, out=block), np.float32(1.0 - self.beta2), out=block)
            np.add(v, block, out=v)
            np.maximum(v_hat, v, out=v_hat)
            np.multiply(m, np.float32(self.beta1), out=m)
            np.add(m, np.multiply(d, np.float32(1.0 - self.beta1), out=d), out=m)
            np.add(np.sqrt(v_hat, out=block), np.float32(self.epsilon), out=block)
            np.divide(m, block, out=d)
            np.multiply(d, rate, out=d)


class FadasSettings(WeighBySettings, BufferSettings, ServerRateSettings):
    """D = mean of the K deltas in the buffer, weighed by examples or not, and a step of DelayAdaptiveAmsGrad.

    No update is discounted by its own staleness: the whole step is, by the greatest of the buffer.
    """

    named: ClassVar[str] = "fadas"
    summary: ClassVar[str] = "a buffer at a time, with an adaptive step that shrinks when an update is late"

    delay_threshold: int = Field(
        1,
        ge=1,
        description="tau_c of fadas: if an update of the buffer has a greater staleness than this, the "
        "server learning rate is divided by that staleness. fadas keeps three vectors of the model's size.",
    )

    def make(self) -> Strategy:
        """See StrategyKind."""
        rule = self.make_rule()
        weigh = DiscountedMean(parse_discount("constant"), self.weigh_by_under(rule))
        step = DelayAdaptiveAmsGrad(
            LEARNING_RATE if self.server_learning_rate is None else self.server_learning_rate,
            0.9 if self.server_momentum is None else self.server_momentum,
            delay_threshold=self.delay_threshold,
        )
        return Strategy(
            FadasSettings.named,
            weigh,
            self.updates_per_version(),
            rule,
            (step,),
            normalizes_steps=bool(self.normalize_steps),
        )
