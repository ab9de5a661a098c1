"""A task of one's own with Keras: three functions, and one line that makes a task of them.

    cp examples/own_keras_task.py hospital.py
    fluffle task check --task hospital:task

This one tells malignant from benign tumours by 30 measurements of cell nuclei (scikit-learn's bundled copy of
the Wisconsin data). In your own federation `train_data` reads what lies on the machine where it runs, and
`site` may be ignored.
"""

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask

Floats = NDArray[np.float32]


def build_model() -> keras.Model:
    """Return a compiled model that knows the shape of its input."""
    model = keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def train_data(site: Site) -> tuple[Floats, Floats]:
    """Return this site's inputs [examples, 30] and targets [examples, 1]: here, every count-th patient."""
    inputs, targets = _patients()
    return inputs[100:][site.index :: site.count], targets[100:][site.index :: site.count]


def eval_data() -> tuple[Floats, Floats]:
    """Return what no site trains on; only the evaluator calls this."""
    inputs, targets = _patients()
    return inputs[:100], targets[:100]


def _patients() -> tuple[Floats, Floats]:
    inputs, targets = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    return inputs.astype(np.float32), targets[:, None].astype(np.float32)


task = KerasTask(build_model, train_data, eval_data)
