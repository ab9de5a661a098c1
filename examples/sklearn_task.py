"""A task with scikit-learn: a linear classifier of handwritten digits, trained by `partial_fit`.

    fluffle task check --task examples.sklearn_task:task
    fluffle demo --task examples.sklearn_task:task --target "accuracy>=0.9"

Any estimator with `partial_fit` can be used in this way if its fitted attributes are arrays: `coef_` and
`intercept_` are set before a round and read after it. `fluffle.task.Task` says what each method must do.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from fluffle.errors import TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained

CLASSES = np.arange(10)
HELD_OUT = 300
LEARNING_RATE = 0.01


class LinearClassifier:
    """Ten linear functions of 64 pixels, one for each digit, trained with the logistic loss."""

    def __init__(self) -> None:
        images, self._labels = load_digits(return_X_y=True)
        self._images: NDArray[np.float32] = (images / 16).astype(np.float32)
        self._mine = np.empty(0, np.int64)

    def initial_weights(self, seed: int) -> Weights:
        """Return small random numbers drawn from the seed."""
        coef = 0.01 * np.random.default_rng(seed).standard_normal((10, 64))
        return {"coef": coef.astype(np.float32), "intercept": np.zeros(10, np.float32)}

    def prepare(self, site: Site) -> int:
        """Take every count-th of the images that are not held out; your own task reads its files here."""
        self._mine = np.arange(HELD_OUT + site.index, self._labels.size, site.count)
        return self._mine.size

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Call `partial_fit` with as many minibatches as the plan says."""
        if plan.proximal_mu:
            raise TaskError("SGDClassifier has no proximal term: leave proximal_mu out of the plan")
        rate = LEARNING_RATE if plan.learning_rate is None else plan.learning_rate
        classifier = _classifier(weights, learning_rate=rate * plan.learning_rate_scale, seed=seed)
        total = plan.local_steps or plan.local_epochs * ceil(self._mine.size / plan.batch_size)
        minibatches = islice(self._minibatches(plan.batch_size, np.random.default_rng(seed)), total)
        for done, rows in enumerate(minibatches, start=1):
            # A minibatch may lack some digits, so all classes are named each time.
            classifier.partial_fit(self._images[rows], self._labels[rows], classes=CLASSES)
            progress(done, total)
        trained = {"coef": classifier.coef_, "intercept": classifier.intercept_}
        metrics = {"accuracy": float(classifier.score(self._images[self._mine], self._labels[self._mine]))}
        return Trained(trained, min(self._mine.size, total * plan.batch_size), metrics)

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return loss and accuracy on the images that no site trains on."""
        classifier = _classifier(weights)
        images, labels = self._images[:HELD_OUT], self._labels[:HELD_OUT]
        return {
            "loss": float(log_loss(labels, classifier.predict_proba(images), labels=CLASSES)),
            "accuracy": float(classifier.score(images, labels)),
        }

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.safetensors` file; unlike a pickle it cannot run code when it is read."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """Read a `.safetensors` file."""
        return read_model(path)

    def _minibatches(self, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        while True:
            order = rng.permutation(self._mine)
            yield from (order[start : start + batch_size] for start in range(0, order.size, batch_size))


def _classifier(weights: Weights, *, learning_rate: float = LEARNING_RATE, seed: int = 0) -> SGDClassifier:
    """Return a classifier that goes on from these weights, which are copied."""
    classifier = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=learning_rate, random_state=seed
    )
    classifier.classes_ = CLASSES
    classifier.coef_ = weights["coef"].copy()
    classifier.intercept_ = weights["intercept"].copy()
    return classifier


task = LinearClassifier()
