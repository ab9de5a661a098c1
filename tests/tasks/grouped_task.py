"""A task of one's own that says which of its tensors are trained, statistics, frozen and local."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fluffle.model import Group, Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained

GROUPS: Mapping[str, Group] = {"mean": "statistic", "count": "statistic", "base": "frozen", "head": "local"}


class FourGroups:
    """`w` moves by 1 in each round, the mean becomes the site's own, and the head counts its rounds."""

    base = 7.0

    def __init__(self) -> None:
        self.site = 0
        self.given: list[dict[str, float]] = []

    def initial_weights(self, seed: int) -> Weights:
        zeros = {name: np.zeros(2, np.float32) for name in ("w", "mean", "head")}
        return {**zeros, "base": np.full(1000, self.base, np.float32), "count": np.array(0)}

    def tensor_groups(self) -> Mapping[str, Group]:
        return GROUPS

    def prepare(self, site: Site) -> int:
        self.site = site.index
        return 10

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        progress(1, 1)
        self.given.append({name: float(np.ravel(array)[0]) for name, array in weights.items()})
        after = {
            "w": weights["w"].astype(np.float32) + np.float32(1),
            "mean": np.full(2, self.site + 1, np.float32),
            "head": weights["head"].astype(np.float32) + np.float32(1),
            "count": np.array(len(self.given)),
        }
        return Trained(after, 10, {"loss": 1.0})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        return {name: float(np.ravel(array)[0]) for name, array in weights.items()}

    def save(self, weights: Weights, path: Path) -> None:
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        return read_model(path)


task = FourGroups()
