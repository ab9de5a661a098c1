"""A regression in plain numpy, for benchmarks of many workers: one hidden layer on the diabetes data."""

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes

from fluffle.model import Vector, Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained

Floats = NDArray[np.float32]

HIDDEN = 16
LEARNING_RATE = 0.05


class Diabetes:
    """Ten measurements of a patient, and how far the illness went on within a year, as standard scores.

    Each site has the patients of one range of ages, so that the sites differ.
    """

    def __init__(self) -> None:
        x, y = load_diabetes(return_X_y=True)
        held_out = np.arange(len(y)) % 5 == 0
        scale, mean, deviation = x[~held_out].std(), y[~held_out].mean(), y[~held_out].std()
        self._x, self._y = (
            (x / scale).astype(np.float32),
            ((y - mean) / deviation).astype(np.float32)[:, None],
        )
        self._held_out = held_out
        self._mine = np.flatnonzero(~held_out)

    def initial_weights(self, seed: int) -> Weights:
        """Return Glorot's uniform weights, and biases of zero."""
        rng = np.random.default_rng(seed)
        weights: dict[str, NDArray[np.generic]] = {}
        for name, shape in (("hidden", (self._x.shape[1], HIDDEN)), ("out", (HIDDEN, 1))):
            bound = sqrt(6 / sum(shape))
            weights[f"{name}/kernel"] = rng.uniform(-bound, bound, shape).astype(np.float32)
            weights[f"{name}/bias"] = np.zeros(shape[1], np.float32)
        return weights

    def prepare(self, site: Site) -> int:
        """Take the patients of one range of ages."""
        train = np.flatnonzero(~self._held_out)
        by_age = train[np.argsort(self._x[train, 0], kind="stable")]
        self._mine = np.array_split(by_age, site.count)[site.index]
        return int(self._mine.size)

    def training_rows(self) -> tuple[NDArray[np.intp], Floats]:
        """Return all patients that are not held out, and their targets."""
        rows = np.flatnonzero(~self._held_out)
        return rows, self._y[rows, 0]

    def take(self, rows: NDArray[np.intp]) -> None:
        """Take these patients, in place of `prepare`."""
        self._mine = rows

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Take the plan's steps of SGD on the squared error."""
        rng = np.random.default_rng(seed)
        model = {name: array.astype(np.float32) for name, array in weights.items()}
        rate = np.float32(LEARNING_RATE if plan.learning_rate is None else plan.learning_rate)
        per_epoch = ceil(self._mine.size / plan.batch_size)
        total = plan.local_steps or plan.local_epochs * per_epoch
        losses: list[float] = []
        while len(losses) < total:
            for rows in np.array_split(rng.permutation(self._mine), per_epoch)[: total - len(losses)]:
                losses.append(self._descend(model, rows, rate * np.float32(plan.learning_rate_scale)))
                progress(len(losses), total)
        return Trained(model, int(self._mine.size), {"loss": float(np.mean(losses))})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return the root mean squared error, in standard deviations of the target."""
        model = {name: array.astype(np.float32) for name, array in weights.items()}
        _, predicted = self._predict(model, self._x[self._held_out])
        return {"rmse": float(np.sqrt(np.mean((predicted - self._y[self._held_out]) ** 2)))}

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.safetensors` file."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """Read a `.safetensors` file."""
        return read_model(path)

    @staticmethod
    def _predict(model: Mapping[str, Floats], x: Floats) -> tuple[Floats, Floats]:
        hidden: Floats = np.maximum(x @ model["hidden/kernel"] + model["hidden/bias"], np.float32(0))
        return hidden, hidden @ model["out/kernel"] + model["out/bias"]

    def _descend(self, model: Mapping[str, Floats], rows: NDArray[np.intp], rate: np.float32) -> float:
        x, y = self._x[rows], self._y[rows]
        hidden, predicted = self._predict(model, x)
        error = (predicted - y) * np.float32(2 / len(rows))
        below = (error @ model["out/kernel"].T) * (hidden > 0)
        gradients: Mapping[str, Vector] = {
            "hidden/kernel": x.T @ below,
            "hidden/bias": below.sum(axis=0),
            "out/kernel": hidden.T @ error,
            "out/bias": error.sum(axis=0),
        }
        for name, gradient in gradients.items():
            model[name][...] -= rate * gradient
        return float(np.mean((predicted - y) ** 2))
