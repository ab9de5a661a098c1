"""A convolutional network of a hundred thousand parameters for the pictures of Fashion-MNIST."""

from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.tasks.fashion_mnist import eval_data, train_data


def build_model() -> KerasModel:
    """Return two convolutions and two dense layers: 100,176 parameters."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(82, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.001), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


task = KerasTask(build_model, train_data, eval_data)
