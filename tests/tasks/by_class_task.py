"""A task without a framework whose evaluation has one metric for each of two classes."""

from typing import Any

import numpy as np
from working import CountingTask

from fluffle.model import Weights


class ByClass(CountingTask):
    """The first class gets better with each round, the second one never."""

    def evaluate(self, weights: Weights) -> dict[str, Any]:
        """See Task."""
        return {"f1-score@2": np.array([weights["w"][0], 0.0])}


task = ByClass()
