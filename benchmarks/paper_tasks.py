"""The tasks of `make papers`: a small network on pictures of clothing, and quadratics of known optimum."""

from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.splits import split_indices
from fluffle_worker.tasks import fashion_mnist

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Data = tuple[Floats, Bytes]

SITES: Final = 8
DIMENSIONS: Final = 30


def build_model() -> KerasModel:
    """Return a network with one hidden layer of 32 units: 6,634 parameters."""
    keras = import_keras()
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((196,)), layers.Dense(32, activation="relu"), layers.Dense(10, activation="softmax")]
    )
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@lru_cache(1)
def whole() -> Data:
    """Return 20,000 training pictures of Fashion-MNIST in 14x14 pixels, each the mean of four."""
    pictures, labels = fashion_mnist.train_data(Site(split="iid"))
    return smaller(pictures[::3], labels[::3])


@lru_cache(1)
def parts(split: str, sites: int, seed: int) -> list[NDArray[np.int64]]:
    """Return which pictures each site has."""
    return split_indices(whole()[1], split=split, sites=sites, seed=seed)


def train_data(site: Site) -> Data:
    """Return this site's share."""
    mine = parts(site.split, site.count, site.seed)[site.index]
    pictures, labels = whole()
    return pictures[mine], labels[mine]


def eval_data() -> Data:
    """Return a fifth of the test pictures."""
    pictures, labels = fashion_mnist.eval_data()
    return smaller(pictures[::5], labels[::5])


def smaller(pictures: Bytes, labels: Bytes) -> Data:
    """Return pictures of 14x14 pixels in 0..1, each the mean of four, and their labels."""
    in_fours = pictures.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
    return in_fours.reshape(-1, 196) / np.float32(255), labels


clothes = KerasTask(build_model, train_data, eval_data)


class Quadratics:
    """Site i has the loss ||x - e_i||^2 / 2, and 32 * (1 + 3 * i) examples: so many full minibatches.

    A step goes down the gradient of that loss, whatever the minibatch. The federation's loss weighs the sites
    by their examples, and its optimum is the weighted mean of the e_i, which the seed draws.
    """

    def __init__(self) -> None:
        self._seed, self._site = 0, Site()

    def initial_weights(self, seed: int) -> Weights:
        """Return zeros; the seed draws the optima of the sites."""
        self._seed = seed
        return {"x": np.zeros(DIMENSIONS, np.float32)}

    def prepare(self, site: Site) -> int:
        """Take a site."""
        self._site = site
        return _examples(site.index)

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Take the plan's steps."""
        del seed
        mine, x = self._optimum_of(self._site.index), weights["x"].astype(np.float32)
        examples = _examples(self._site.index)
        steps = plan.local_epochs * ceil(examples / plan.batch_size)
        rate = np.float32(0.01 if plan.learning_rate is None else plan.learning_rate)
        for done in range(steps):
            x -= rate * (x - mine)
            progress(done + 1, steps)
        return Trained({"x": x}, examples, {})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return the root mean squared difference from the optimum, in the spread of the sites' optima."""
        sites = range(SITES)
        optimum = np.average(
            [self._optimum_of(site) for site in sites], axis=0, weights=[_examples(site) for site in sites]
        )
        return {"rmse": float(np.sqrt(np.mean((weights["x"] - optimum) ** 2)))}

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.safetensors` file."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """Read a `.safetensors` file."""
        return read_model(path)

    def _optimum_of(self, site: int) -> Floats:
        return np.random.default_rng([self._seed, site]).standard_normal(DIMENSIONS).astype(np.float32)


def _examples(site: int) -> int:
    return 32 * (1 + 3 * site)


quadratics = Quadratics()
