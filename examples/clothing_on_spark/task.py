"""The task: tell ten kinds of clothing apart (Fashion-MNIST). `federate` sends this package to the executors.

The rows to train on come from Spark. Here are the model and the pictures that the evaluator holds out.
"""

import keras
import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tasks import fashion_mnist

PIXELS = 28 * 28


def build_model() -> keras.Model:
    """Return a small convolutional network; a picture is an array of 784 numbers, as in the data frame."""
    model = keras.Sequential(
        [
            keras.Input((PIXELS,)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.001), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train_data(_: Site) -> object:
    """Refuse: with Spark nobody calls this, and without Spark there are no rows."""
    raise TaskError("the rows of this task come from Spark: train it with federate or fluffle-spark.py")


def eval_data() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return 2,000 pictures that no shop has, for the evaluator beside the driver."""
    pictures, kinds = fashion_mnist.eval_data()
    return pictures[:2000].reshape(-1, PIXELS), kinds[:2000]


task = KerasTask(build_model, train_data, eval_data)
