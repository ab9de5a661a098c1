"""A network with one hidden layer in plain numpy, for the demo and for benchmarks of many workers.

A round takes a millisecond where Keras would take fifty, and a worker takes the memory of numpy alone, so
that dozens of them fit on one machine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector, Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Examples = tuple[Floats, Labels]

HIDDEN = 64
LABELS = 10
LEARNING_RATE = 0.1


@dataclass(eq=False)
class OneHiddenLayer:
    """Inputs, 64 units with ReLU, ten labels with softmax; plain SGD on the cross-entropy."""

    inputs: int
    train_data: Callable[[Site], Examples]
    eval_data: Callable[[], Examples]
    _mine: Examples | None = None
    _held_out: Examples | None = None

    def initial_weights(self, seed: int) -> Weights:
        """Return Glorot's uniform weights, as Keras draws them, and biases of zero."""
        rng = np.random.default_rng(seed)
        shapes = {"hidden": (self.inputs, HIDDEN), "out": (HIDDEN, LABELS)}
        weights: dict[str, NDArray[np.generic]] = {}
        for name, shape in shapes.items():
            bound = sqrt(6 / sum(shape))
            weights[f"{name}/kernel"] = rng.uniform(-bound, bound, shape).astype(np.float32)
            weights[f"{name}/bias"] = np.zeros(shape[1], np.float32)
        return weights

    def prepare(self, site: Site) -> int:
        """Load this site's share."""
        self._mine = self.train_data(site)
        return self._mine[1].size

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Take the plan's steps of SGD."""
        if self._mine is None:
            raise RuntimeError("there is no data to train on: call prepare(site) first")
        images, labels = self._mine
        rng = np.random.default_rng(seed)
        trained = {name: array.astype(np.float32) for name, array in weights.items()}
        rate = np.float32(LEARNING_RATE if plan.learning_rate is None else plan.learning_rate)
        total = plan.local_steps or plan.local_epochs * ceil(labels.size / plan.batch_size)
        losses: list[float] = []
        while len(losses) < total:
            order = rng.permutation(labels.size)
            for start in range(0, labels.size, plan.batch_size):
                rows = order[start : start + plan.batch_size]
                losses.append(_descend(trained, images[rows], labels[rows], rate))
                progress(len(losses), total)
                if len(losses) == total:
                    break
        examples = min(labels.size, total * plan.batch_size)
        return Trained(trained, examples, {"loss": float(np.mean(losses))})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return loss and accuracy on what is held out."""
        if self._held_out is None:
            self._held_out = self.eval_data()
        images, labels = self._held_out
        model = {name: array.astype(np.float32) for name, array in weights.items()}
        probabilities = _probabilities(model, _hidden(model, images))
        of_the_truth = probabilities[np.arange(labels.size), labels]
        return {
            "loss": float(-np.log(np.maximum(of_the_truth, 1e-12)).mean()),
            "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        }

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.safetensors` file."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """Read a `.safetensors` file."""
        return read_model(path)


def _hidden(model: Mapping[str, Floats], images: Floats) -> Floats:
    hidden: Floats = np.maximum(images @ model["hidden/kernel"] + model["hidden/bias"], np.float32(0))
    return hidden


def _probabilities(model: Mapping[str, Floats], hidden: Floats) -> Floats:
    scores = hidden @ model["out/kernel"] + model["out/bias"]
    exponentials: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _descend(model: Mapping[str, Floats], images: Floats, labels: Labels, rate: np.float32) -> float:
    """Take one step along the mean gradient of a minibatch, in place; return the loss before it."""
    hidden = _hidden(model, images)
    error, rows = _probabilities(model, hidden), np.arange(labels.size)
    loss = float(-np.log(np.maximum(error[rows, labels], 1e-12)).mean())
    # The gradient with respect to the scores is the probabilities minus the truth.
    error[rows, labels] -= 1
    error /= np.float32(labels.size)
    error_below = (error @ model["out/kernel"].T) * (hidden > 0)
    gradients: Mapping[str, Vector] = {
        "hidden/kernel": images.T @ error_below,
        "hidden/bias": error_below.sum(axis=0),
        "out/kernel": hidden.T @ error,
        "out/bias": error.sum(axis=0),
    }
    for name, gradient in gradients.items():
        model[name][...] -= rate * gradient
    return loss
