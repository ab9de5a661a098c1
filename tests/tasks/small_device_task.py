"""Models that a small device trains a part of: a CNN, a dense one, one with shared layers, and an LSTM."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]
HELD_OUT = 5
ROWS = 8


def _compiled(inputs: object, outputs: object) -> KerasModel:
    keras = import_keras()
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.005), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build_dense() -> KerasModel:
    """Return two dense layers."""
    layers = import_keras().layers
    inputs = import_keras().Input((ROWS, ROWS))
    x = layers.Dense(64, activation="relu", name="hidden")(layers.Flatten()(inputs))
    return _compiled(inputs, layers.Dense(10, activation="softmax", name="last")(x))


def build_cnn() -> KerasModel:
    """Return convolutions with BatchNormalization, and a dense head."""
    layers = import_keras().layers
    inputs = import_keras().Input((ROWS, ROWS))
    x = layers.Reshape((ROWS, ROWS, 1))(inputs)
    for number, filters in enumerate((16, 32)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{number}")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    x = layers.Dense(32, activation="relu", name="hidden")(layers.Flatten()(x))
    return _compiled(inputs, layers.Dense(10, activation="softmax", name="last")(x))


def build_shared() -> KerasModel:
    """Return a model that reads the upper and the lower half of an image with the same layers."""
    layers = import_keras().layers
    inputs = import_keras().Input((ROWS, ROWS))
    tower = import_keras().Sequential(
        [layers.Flatten(), layers.Dense(32, activation="relu", name="seen")], name="tower"
    )
    halves = [layers.Cropping1D(each)(inputs) for each in ((0, 4), (4, 0))]
    x = layers.Concatenate()([tower(half) for half in halves])
    x = layers.LayerNormalization(name="norm")(x)
    return _compiled(inputs, layers.Dense(10, activation="softmax", name="last")(x))


def build_lstm() -> KerasModel:
    """Return an LSTM that reads an image line by line, as a text model reads words."""
    layers = import_keras().layers
    inputs = import_keras().Input((ROWS, ROWS))
    x = layers.Bidirectional(layers.LSTM(24, return_sequences=True), name="words")(inputs)
    x = layers.LSTM(24, name="sentence")(x)
    return _compiled(inputs, layers.Dense(10, activation="softmax", name="last")(x))


def _examples(*, held_out: bool) -> Arrays:
    images, labels = load_digits(return_X_y=True)
    is_held_out = np.arange(labels.size) % HELD_OUT == 0
    chosen = is_held_out if held_out else ~is_held_out
    return (images[chosen] / 16).reshape(-1, ROWS, ROWS).astype(np.float32), labels[chosen].astype(np.int64)


def train_data(site: Site) -> Arrays:
    """Return this site's part: pixels [examples, 8, 8] in 0..1, and labels [examples]."""
    images, labels = _examples(held_out=False)
    return images[site.index :: site.count], labels[site.index :: site.count]


def eval_data() -> Arrays:
    """Return the held-out fifth."""
    return _examples(held_out=True)


def make_task(build: Callable[[], KerasModel]) -> KerasTask:
    """Return a task of its own model."""
    return KerasTask(build, train_data, eval_data)


dense, cnn, shared, lstm = map(make_task, (build_dense, build_cnn, build_shared, build_lstm))
