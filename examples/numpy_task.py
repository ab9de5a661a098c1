"""A task without Keras and TensorFlow: softmax regression on handwritten digits in plain numpy.

    fluffle worker --task examples.numpy_task:task ...

Whatever you train with (PyTorch, JAX, scikit-learn), write a class like this one: named numpy arrays go in
and come out, and how they are trained in between is yours. `fluffle.task.Task` says what each method must do.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fluffle.errors import TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import MeanOf, Progress, Site, Trained, Validated

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# From a site to the pixels and digits that it trains on.
TrainData = Callable[[Site], tuple[NDArray[np.float32], Labels]]

LEARNING_RATE = 0.5
HELD_OUT = 300


class SoftmaxRegression:
    """Ten linear functions of 64 pixels, trained with stochastic gradient descent on the cross-entropy."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        self._images: Floats = images / 16
        self._labels: Labels = labels.astype(np.int64)
        self._mine = self._own = np.empty(0, np.int64)
        self._train_data: TrainData | None = None

    def with_train_data(self, train_data: TrainData) -> Self:
        """Return a task that trains on these rows; only a task for Spark needs this method."""
        other = copy(self)
        other._train_data = train_data
        return other

    def initial_weights(self, seed: int) -> Weights:
        """Return small random numbers drawn from the seed."""
        rng = np.random.default_rng(seed)
        return {
            "kernel": (0.01 * rng.standard_normal((64, 10))).astype(np.float32),
            "bias": np.zeros(10, np.float32),
        }

    def prepare(self, site: Site) -> int:
        """Take every count-th of the images that are not held out; your own task reads its files here.

        Of these, the site may hold out a share itself (`fluffle worker --local-validation 0.2`).
        """
        if self._train_data is None:
            mine = np.arange(HELD_OUT + site.index, self._labels.size, site.count)
        else:
            pixels, digits = self._train_data(site)
            self._images = np.concatenate([self._images[:HELD_OUT], pixels / 16])
            self._labels = np.concatenate([self._labels[:HELD_OUT], digits])
            mine = np.arange(HELD_OUT, self._labels.size)
        self._own, self._mine = np.split(mine, [round(site.validation * mine.size)])
        return self._mine.size

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Take the plan's number of steps, each along the mean gradient of one minibatch."""
        if not self._mine.size:
            raise TaskError("there is no data to train on: call prepare(site) first")
        base = _as_float64(weights)
        trained = {name: array.copy() for name, array in base.items()}
        rate = LEARNING_RATE if plan.learning_rate is None else plan.learning_rate
        rate *= plan.learning_rate_scale
        total = plan.local_steps or plan.local_epochs * ceil(self._mine.size / plan.batch_size)
        losses = []
        minibatches = islice(self._minibatches(plan.batch_size, np.random.default_rng(seed)), total)
        for done, rows in enumerate(minibatches, start=1):
            loss, gradients = _loss_and_gradients(trained, self._images[rows], self._labels[rows])
            for name, gradient in gradients.items():
                pull = plan.proximal_mu * (trained[name] - base[name])
                trained[name] -= rate * (gradient + pull)
            losses.append(loss)
            progress(done, total)
        examples = min(self._mine.size, total * plan.batch_size)
        as_before = {name: array.astype(weights[name].dtype) for name, array in trained.items()}
        return Trained(as_before, examples, {"loss": float(np.mean(losses))})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return loss and accuracy on the images that no site trains on."""
        sums = self._sums(weights, np.arange(HELD_OUT))
        return {name: total / HELD_OUT for name, total in sums.items()}

    def validate(self, weights: Weights) -> Validated | None:
        """Return the same for the images that this site holds out, as sums that add up over all sites."""
        examples = self._own.size
        if not examples:
            return None
        sums = self._sums(weights, self._own)
        return Validated(examples, {name: MeanOf(total, examples) for name, total in sums.items()})

    def _sums(self, weights: Weights, rows: Labels) -> dict[str, float]:
        probabilities, labels = _probabilities(_as_float64(weights), self._images[rows]), self._labels[rows]
        right = probabilities.argmax(axis=1) == labels
        loss = -np.log(probabilities[np.arange(rows.size), labels])
        return {"loss": float(loss.sum()), "accuracy": float(right.sum())}

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.safetensors` file."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """Read a `.safetensors` file."""
        return read_model(path)

    def _minibatches(self, batch_size: int, rng: np.random.Generator) -> Iterator[Labels]:
        while True:
            order = rng.permutation(self._mine)
            yield from (order[start : start + batch_size] for start in range(0, order.size, batch_size))


def _as_float64(weights: Weights) -> dict[str, Floats]:
    return {name: array.astype(np.float64) for name, array in weights.items()}


def _probabilities(weights: Mapping[str, Floats], images: Floats) -> Floats:
    """Return the softmax of the ten functions: [examples, 10]."""
    scores = images @ weights["kernel"] + weights["bias"]
    exponentials: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _loss_and_gradients(
    weights: Mapping[str, Floats], images: Floats, labels: Labels
) -> tuple[float, Mapping[str, Floats]]:
    probabilities = _probabilities(weights, images)
    rows = np.arange(labels.size)
    loss = -np.log(probabilities[rows, labels]).mean()
    # The gradient of the cross-entropy with respect to the scores is the probabilities minus the truth.
    error = probabilities.copy()
    error[rows, labels] -= 1
    return float(loss), {"kernel": images.T @ error / labels.size, "bias": error.mean(axis=0)}


task = SoftmaxRegression()
