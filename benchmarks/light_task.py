"""A task that costs next to nothing: one tensor of any size, to which a round adds a little noise.

    FLUFFLE_LIGHT_PARAMETERS=25000000 fluffle worker --task benchmarks.light_task:task ...

What is measured with it is what Fluffle takes, not what training takes.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained

PARAMETERS_VARIABLE = "FLUFFLE_LIGHT_PARAMETERS"
NOISE = 65_536
EXAMPLES = 32


class LightTask:
    """Training copies the weights and adds the same noise to each block of them."""

    def __init__(self, parameters: int) -> None:
        self._parameters = parameters

    def initial_weights(self, seed: int) -> Weights:
        """Return random numbers."""
        return {"kernel": np.random.default_rng(seed).standard_normal(self._parameters, np.float32)}

    def prepare(self, site: Site) -> int:
        """Have no data, at any site."""
        del site
        return EXAMPLES

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Add noise, whatever the plan."""
        del plan
        trained = weights["kernel"].astype(np.float32)
        noise = np.random.default_rng(seed).standard_normal(NOISE, np.float32) * np.float32(0.01)
        for start in range(0, trained.size, NOISE):
            block = trained[start : start + NOISE]
            block += noise[: block.size]
        progress(1, 1)
        return Trained({"kernel": trained}, EXAMPLES, {"loss": 1.0})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return nothing of interest."""
        return {"loss": float(weights["kernel"].size)}

    def save(self, weights: Weights, path: Path) -> None:
        """See Task."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """See Task."""
        return read_model(path)


task = LightTask(int(os.environ.get(PARAMETERS_VARIABLE, "1000")))
