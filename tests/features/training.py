"""What happens between a minibatch and the weights: precision, optimizers, losses, metrics, steps."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from features.feature import INPUTS, Feature, stack

from fluffle.plan import Plan
from fluffle_worker.keras_task import KerasModel


def mixed(policy: str) -> Any:
    def build(keras: ModuleType) -> KerasModel:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            return stack(keras, keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization())
        finally:
            keras.config.set_dtype_policy(before)

    return build


def narrow(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    # Not Adam: in bfloat16 its 0.999 is 1, and it never moves a weight.
    return stack(
        keras,
        layers.Dense(8, dtype="float16"),
        layers.Dense(8, dtype="bfloat16"),
        optimizer=keras.optimizers.SGD(0.1),
    )


def hidden(keras: ModuleType, **options: Any) -> KerasModel:
    return stack(keras, keras.layers.Dense(8, activation="relu"), **options)


def average(keras: ModuleType) -> KerasModel:
    return hidden(keras, optimizer=keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5))


def accumulation(keras: ModuleType) -> KerasModel:
    return hidden(keras, optimizer=keras.optimizers.Adam(0.05, gradient_accumulation_steps=3))


def clipping(keras: ModuleType) -> KerasModel:
    return hidden(keras, optimizer=keras.optimizers.AdamW(0.05, weight_decay=0.001, global_clipnorm=1.0))


def schedule(keras: ModuleType) -> KerasModel:
    falling = keras.optimizers.schedules.CosineDecay(0.05, 50)
    return hidden(keras, optimizer=keras.optimizers.SGD(falling, momentum=0.9, nesterov=True))


def penalty(keras: ModuleType) -> KerasModel:
    limited = keras.layers.Dense(
        8,
        kernel_regularizer=keras.regularizers.L2(0.001),
        activity_regularizer=keras.regularizers.L1(0.0001),
        kernel_constraint=keras.constraints.MaxNorm(2.0),
    )
    return stack(keras, limited)


def own_step(keras: ModuleType) -> KerasModel:
    def train_step(model: Any, data: Any) -> Any:
        x, y = data
        return keras.Model.train_step(model, (x * 2.0, y))

    return own(keras, "Doubled", {"train_step": train_step})


def own_loss(keras: ModuleType) -> KerasModel:
    def focal(y: Any, predicted: Any) -> Any:
        right = keras.ops.where(y > 0.5, predicted, 1.0 - predicted)
        return -keras.ops.mean(keras.ops.square(1.0 - right) * keras.ops.log(right + 1e-6), axis=-1)

    return hidden(keras, loss=focal)


def own(keras: ModuleType, name: str, methods: Mapping[str, Any]) -> KerasModel:
    """Return a functional model of a class of its own."""
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Dense(8, activation="relu")(inputs))
    model = type(name, (keras.Model,), dict(methods))(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.02), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def by_class(keras: ModuleType) -> KerasModel:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, activation="softmax")])
    metrics = keras.metrics
    model.compile(
        keras.optimizers.Adam(0.05),
        loss="categorical_crossentropy",
        metrics=["accuracy", metrics.F1Score(name="f1_score"), metrics.Precision(name="precision@0.5")],
    )
    return model


def one_hot() -> object:
    return INPUTS, np.eye(2, dtype=np.float32)[(INPUTS[:, 0] > 0).astype(int)]


TRAINING: Mapping[str, Feature] = {
    "mixed_float16 with loss scaling": Feature(
        build=mixed("mixed_float16"), groups={"*/moving_*": "statistic"}
    ),
    "mixed_bfloat16": Feature(build=mixed("mixed_bfloat16"), groups={"*/moving_*": "statistic"}),
    "float16 and bfloat16 weights": Feature(build=narrow),
    "moving average of the weights (EMA)": Feature(build=average),
    "gradient accumulation": Feature(build=accumulation),
    "weight decay and gradient clipping": Feature(build=clipping),
    "learning rate schedules": Feature(build=schedule),
    "regularisers and constraints": Feature(build=penalty),
    "a custom train_step": Feature(
        build=own_step,
        refused=r"train_step\(model: '?Any'?, data: '?Any'?\) .* it is train_step\(self, state, data\)",
    ),
    "custom losses": Feature(build=own_loss),
    "metrics by class, such as F1Score": Feature(build=by_class, data=one_hot),
    "jit_compile=True": Feature(build=lambda keras: hidden(keras, jit_compile=True)),
    "steps_per_execution": Feature(
        build=lambda keras: hidden(keras, steps_per_execution=2), plan=Plan(local_epochs=4, batch_size=20)
    ),
    "run_eagerly=True": Feature(build=lambda keras: hidden(keras, run_eagerly=True)),
}
