"""The numpy task behind the gate."""

from numpy_task import SoftmaxRegression
from tasks.gate import Gate

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Progress, Trained


class GatedRegression(SoftmaxRegression):
    """Trains when it may, and can be stopped while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = Gate()

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        self._gate.begin_round(progress)
        return super().train(weights, plan, seed=seed, progress=progress)


task = GatedRegression()
