"""The Keras network that benchmarks.on_spark trains."""

from typing import Any

import numpy as np
from numpy_task import HELD_OUT
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


keras_digits = KerasTask(network, rows_of)
