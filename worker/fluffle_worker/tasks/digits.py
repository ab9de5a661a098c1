"""Handwritten digits of 8x8 pixels: the demo's task, and the shortest example of one.

The data is the copy that scikit-learn brings with it (1,797 images, from the UCI repository), so nothing is
downloaded. A fifth is held out, the same everywhere; the rest is split among the sites.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.splits import split_indices

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def build_model() -> KerasModel:
    """Return a network with one hidden layer of 64 units: 4,810 parameters."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train_data(site: Site) -> tuple[Images, Labels]:
    """Return this site's share: pixels [examples, 64] in 0..1, and labels [examples]."""
    images, labels = _examples(held_out=False)
    mine = split_indices(labels, split=site.split, sites=site.count, seed=site.seed)[site.index]
    return images[mine], labels[mine]


def eval_data() -> tuple[Images, Labels]:
    """Return the held-out fifth."""
    return _examples(held_out=True)


def _examples(*, held_out: bool) -> tuple[Images, Labels]:
    images, labels = load_digits(return_X_y=True)
    # Each fifth of the examples in the order of their labels: each label is held out in its proportion.
    order = np.argsort(labels, kind="stable")
    is_held_out = np.zeros(labels.size, bool)
    is_held_out[order[::5]] = True
    chosen = is_held_out if held_out else ~is_held_out
    return (images[chosen] / 16).astype(np.float32), labels[chosen].astype(np.int64)


task = KerasTask(build_model, train_data, eval_data)
