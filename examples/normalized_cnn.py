"""The same convolutional network with BatchNormalization and with LayerNormalization, on Fashion-MNIST.

    fluffle demo --task examples.normalized_cnn:batch_norm
    fluffle demo --task examples.normalized_cnn:layer_norm

BatchNormalization's moving means and variances are statistics: they travel as values, and a version has the
weighted mean of its sites' (docs/models.md).
"""

from functools import partial

import keras

from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tasks.fashion_mnist import eval_data, train_data


def build_model(normalization: type[keras.Layer]) -> keras.Model:
    """Return two convolutions, each with a normalization behind it, and one dense layer."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, strides=2, use_bias=False),
            normalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(32, 3, strides=2, use_bias=False),
            normalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.001), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


batch_norm = KerasTask(partial(build_model, keras.layers.BatchNormalization), train_data, eval_data)
layer_norm = KerasTask(partial(build_model, keras.layers.LayerNormalization), train_data, eval_data)
