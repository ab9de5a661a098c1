"""The tasks of benchmarks.on_spark: a Keras network, and a softmax regression without TensorFlow."""

from collections.abc import Callable
from copy import copy
from typing import Any, Self

import numpy as np
from numpy_task import HELD_OUT, SoftmaxRegression
from sklearn.datasets import load_digits

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

SITES = 2


def rows_of(site: Site) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return every second digit, as the data frame of the benchmark divides them."""
    images, labels = load_digits(return_X_y=True)
    mine = slice(HELD_OUT + site.index, None, site.count)
    return images[mine].astype(np.float32), labels[mine].astype(np.int64)


def network() -> KerasModel:
    """Return a compiled network with two layers."""
    keras = import_keras()
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Rescaling(1 / 16),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    return model


class SoftmaxOfRows(SoftmaxRegression):
    """Softmax regression on the rows that it is given."""

    _train_data: Callable[[Site], Any] = staticmethod(rows_of)

    def with_train_data(self, train_data: Callable[[Site], Any]) -> Self:
        """Return a task that trains on other rows."""
        other = copy(self)
        other._train_data = train_data
        return other

    def prepare(self, site: Site) -> int:
        """Take the rows."""
        pixels, labels = self._train_data(site)
        self._images = np.concatenate([self._images[:HELD_OUT], pixels.astype(np.float64) / 16])
        self._labels = np.concatenate([self._labels[:HELD_OUT], labels])
        self._mine = np.arange(HELD_OUT, self._labels.size)
        return int(self._mine.size)


keras_digits = KerasTask(network, rows_of)
softmax = SoftmaxOfRows()
