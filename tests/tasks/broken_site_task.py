"""Two tasks whose last site has broken data: values in another unit, and labels that count from 1."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

Values = NDArray[np.float32]
Labels = NDArray[np.int64]


def build_table_model() -> KerasModel:
    """Return a classifier of 30 columns with BatchNormalization and Dropout, trained by Adam."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Dense(32),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def table_data(site: Site) -> tuple[Values, Labels]:
    """Return a share of the patients; the last site measures in thousandths of what the others do."""
    values, labels = _patients(held_out=False)
    mine = slice(site.index, None, site.count)
    return values[mine] * np.float32(1000 if _is_broken(site) else 1), labels[mine]


def _patients(*, held_out: bool) -> tuple[Values, Labels]:
    values, labels = load_breast_cancer(return_X_y=True)
    values = ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)
    is_held_out = np.arange(labels.size) % 5 == 0
    chosen = is_held_out if held_out else ~is_held_out
    return values[chosen], labels[chosen].astype(np.int64)


def build_sequence_model() -> KerasModel:
    """Return a recurrent network that reads a digit row by row."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.GRU(32),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
    return model


def sequence_data(site: Site) -> tuple[Values, Labels]:
    """Return a share of the digits; the last site counts its labels from 1."""
    rows, labels = _digits(held_out=False)
    mine = slice(site.index, None, site.count)
    return rows[mine], (labels[mine] + 1) % 10 if _is_broken(site) else labels[mine]


def _digits(*, held_out: bool) -> tuple[Values, Labels]:
    images, labels = load_digits(return_X_y=True)
    is_held_out = np.arange(labels.size) % 5 == 0
    chosen = is_held_out if held_out else ~is_held_out
    return (images[chosen].reshape(-1, 8, 8) / 16).astype(np.float32), labels[chosen].astype(np.int64)


def _is_broken(site: Site) -> bool:
    return site.index == site.count - 1


table = KerasTask(build_table_model, table_data, lambda: _patients(held_out=True))
sequence = KerasTask(build_sequence_model, sequence_data, lambda: _digits(held_out=True))
