"""The numpy task, whose rounds begin when a test lets them: no test of faults depends on speed.

The file `rounds` in the working folder says how many rounds a process may finish in its life; at the start of
each it makes a file `begun-N`.
"""

from __future__ import annotations

import time
from pathlib import Path

from numpy_task import SoftmaxRegression

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Progress, Trained


class GatedRegression(SoftmaxRegression):
    """Trains when it may, and can be stopped while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = 0

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        self._begun += 1
        Path(f"begun-{self._begun}").touch()
        while int(Path("rounds").read_text()) < self._begun:
            progress(0, 1)
            time.sleep(0.02)
        return super().train(weights, plan, seed=seed, progress=progress)


task = GatedRegression()
