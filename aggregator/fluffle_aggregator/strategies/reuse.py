"""Reuse: every step is made of all workers' last updates, each until the model has followed it."""

from functools import partial
from typing import ClassVar

from pydantic import Field

from fluffle_aggregator.cached_buffers import Calibration
from fluffle_aggregator.strategies.cached import CalibrationSettings
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.used_cache import UsedCache

CALIBRATION = 0.5
RATE = 1.5
# Of what is left, no step takes more: each step takes from what the next one finds left, and the sequence
# u <- MOST_OF_REST * (1 - u) must settle. Without this it swings for ever when K is as large as n.
MOST_OF_REST = 0.75


class ReuseSettings(CalibrationSettings):
    """x <- x + min(3/4, eta * min(1, K / n)) * (r + (q / K) * sum of (delta_i - h_i)), over K of n workers.

    This is ca2fl, with r in the place of the mean h of all workers' last updates h_i: r is the mean of what
    is left of them. Of h_i there is left 1 - used_i / limit, from 0 to 2, and used_i grows with each step of
    the model by <step, h_i> / <h_i, h_i>: it says how far the model has moved along h_i since that came, in
    h_i's own length. So a slow worker's update counts in many steps, but moves the model along it no further
    than it is long; without that, the model swings where speeds differ. With an unlimited `reuse_limit`, q =
    1 and a step of min(1, K / n), this is ca2fl.

    Source: this project (docs/decisions/0025). CA2FL: see Ca2flSettings. That kept updates should count less
    as they age is known, as from ACED; here age is the way that the model went, and not time.
    """

    named: ClassVar[str] = "reuse"
    summary: ClassVar[str] = "a step of all workers' last updates, each until the model has followed it"

    reuse_limit: float = Field(
        1.0,
        gt=0,
        description="How far the model follows a worker's last update until the next one comes, in the "
        "update's own length: the further it has gone, the less the update counts.",
    )

    def make(self) -> Strategy:
        """See StrategyKind."""
        default_rate = RATE if self.server_optimizer == "sgd" else 1.0
        rate = default_rate if self.server_learning_rate is None else self.server_learning_rate
        return self.make_calibrated(
            ReuseSettings.named,
            Calibration(
                CALIBRATION if self.calibration is None else self.calibration,
                partial(UsedCache, limit=self.reuse_limit),
                f"reuse_limit={self.reuse_limit:g}",
                min(1.0, MOST_OF_REST / rate),
            ),
            self.make_keeping(),
            self.updates_per_version(default=1),
            default_rate,
        )
