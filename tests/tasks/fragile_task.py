"""The example in plain numpy, whose training fails as the size of its minibatches says."""

import os
import signal

from numpy_task import SoftmaxRegression

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Progress, Trained

RAISES, IS_KILLED = 13, 14


class FragileTask(SoftmaxRegression):
    """It raises with minibatches of RAISES examples, and its process is killed with IS_KILLED."""

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See SoftmaxRegression."""
        if plan.batch_size == RAISES:
            raise ValueError("the cat sat on the disk")
        if plan.batch_size == IS_KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(weights, plan, seed=seed, progress=progress)


task = FragileTask()
