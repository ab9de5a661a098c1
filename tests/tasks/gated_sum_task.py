"""A task behind the gate whose every round adds the same whole numbers, so that a test can count them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tasks.gate import Gate

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Progress, Site, Trained

DELTA = np.arange(1, 9, dtype=np.float32)


class GatedSum:
    """Trains when it may, and can be stopped while it waits."""

    def __init__(self) -> None:
        self._gate = Gate()

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {"w": np.zeros(DELTA.size, np.float32)}

    def prepare(self, site: Site) -> int:
        """See Task."""
        return 10

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        self._gate.begin_round(progress)
        return Trained({"w": np.asarray(weights["w"], np.float32) + DELTA}, examples=10, metrics={})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """See Task."""
        return {}

    def save(self, weights: Weights, path: Path) -> None:
        """See Task."""

    def load(self, path: Path) -> Weights:
        """See Task."""
        return self.initial_weights(0)


task = GatedSum()
