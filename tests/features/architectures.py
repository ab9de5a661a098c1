"""How a model is put together."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from features.feature import INPUTS, TARGETS, Feature, compiled, stack

from fluffle_worker.keras_task import KerasModel


def sequential(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Dense(8, activation="relu"))


def functional(keras: ModuleType) -> KerasModel:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    skipped = keras.layers.Add()([keras.layers.Dense(8)(hidden), hidden])
    return compiled(keras, keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(skipped)))


def subclassed(keras: ModuleType) -> KerasModel:
    def start(model: Any) -> None:
        keras.Model.__init__(model)
        model.hidden = keras.layers.Dense(8, activation="relu")
        model.last = keras.layers.Dense(1, activation="sigmoid")

    def call(model: Any, x: Any) -> Any:
        return model.last(model.hidden(x))

    model = type("Classifier", (keras.Model,), {"__init__": start, "call": call})()
    model(INPUTS[:1])
    return compiled(keras, model)


def several(keras: ModuleType) -> KerasModel:
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left, right])
    label = keras.layers.Dense(1, activation="sigmoid", name="label")(both)
    total = keras.layers.Dense(1, name="total")(both)
    model = keras.Model([left, right], {"label": label, "total": total})
    model.compile(
        keras.optimizers.Adam(0.02),
        loss={"label": "binary_crossentropy", "total": "mean_squared_error"},
        loss_weights={"label": 1.0, "total": 0.5},
        metrics={"label": ["accuracy", keras.metrics.AUC(name="auc")], "total": ["mean_absolute_error"]},
    )
    return model


def two_inputs_and_targets() -> object:
    return (
        {"left": INPUTS[:, :3], "right": INPUTS[:, 3:]},
        {"label": TARGETS, "total": INPUTS.sum(axis=1, keepdims=True)},
    )


def shared(keras: ModuleType) -> KerasModel:
    inputs = keras.Input((6,))
    tower = keras.layers.Dense(4, activation="tanh", name="tower")
    halves = [tower(inputs[:, :3]), tower(inputs[:, 3:])]
    merged = keras.layers.Concatenate()(halves)
    return compiled(keras, keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(merged)))


def nested(keras: ModuleType) -> KerasModel:
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.BatchNormalization()])
    return stack(keras, inner)


def custom_layer(keras: ModuleType) -> KerasModel:
    def build(layer: Any, shape: tuple[int, ...]) -> None:
        layer.scale = layer.add_weight(name="scale", shape=shape[1:], initializer="ones")
        layer.peak = layer.add_weight(name="peak", shape=shape[1:], initializer="zeros", trainable=False)

    def call(layer: Any, x: Any, training: bool = False) -> Any:
        if training:
            layer.peak.assign(0.9 * layer.peak + 0.1 * keras.ops.max(keras.ops.abs(x), axis=0))
        return x * layer.scale

    layer = type("Scaled", (keras.layers.Layer,), {"build": build, "call": call})
    return stack(keras, layer(), keras.layers.Lambda(keras.ops.tanh))


def variational_autoencoder(keras: ModuleType) -> KerasModel:
    """An encoder, a random sample, a decoder, and a loss that a layer adds; there is no target."""

    def start(layer: Any) -> None:
        keras.layers.Layer.__init__(layer)
        layer.seed_generator = keras.random.SeedGenerator(1)

    def call(layer: Any, moments: Any) -> Any:
        mean, log_variance = moments
        ops = keras.ops
        divergence = ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance
        layer.add_loss(0.01 * ops.mean(divergence))
        noise = keras.random.normal(ops.shape(mean), seed=layer.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise

    sampling = type("Sampling", (keras.layers.Layer,), {"__init__": start, "call": call})
    inputs = keras.Input((6,))
    sample = sampling()(
        [keras.layers.Dense(3, name="mean")(inputs), keras.layers.Dense(3, name="spread")(inputs)]
    )
    model = keras.Model(inputs, keras.layers.Dense(6, name="decoder")(sample))
    model.compile(keras.optimizers.Adam(0.05), loss="mean_squared_error")
    return model


def without_call(keras: ModuleType) -> KerasModel:
    """A subclass of keras.Model that has parts and a loss of its own, as in Keras's own VAE example."""

    def start(model: Any) -> None:
        keras.Model.__init__(model)
        model.encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)], name="encoder")
        model.decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)], name="decoder")

    def compute_loss(model: Any, x: Any = None, *_arguments: Any, **_options: Any) -> Any:
        return keras.ops.mean(keras.ops.square(model.decoder(model.encoder(x)) - x))

    def call(model: Any, x: Any) -> Any:
        return model.decoder(model.encoder(x))

    model = type(
        "Autoencoder", (keras.Model,), {"__init__": start, "call": call, "compute_loss": compute_loss}
    )()
    model.compile(keras.optimizers.Adam(0.02))
    return model


ARCHITECTURES: Mapping[str, Feature] = {
    "Sequential": Feature(build=sequential),
    "functional": Feature(build=functional),
    "subclassed": Feature(build=subclassed),
    "several inputs and outputs": Feature(build=several, data=two_inputs_and_targets),
    "shared layers": Feature(build=shared),
    "a model inside a model": Feature(build=nested, groups={"*/moving_*": "statistic"}),
    "custom layers": Feature(build=custom_layer, groups={"*/peak": "statistic"}),
    "add_loss, and a variational autoencoder": Feature(
        build=variational_autoencoder, data=lambda: (INPUTS, INPUTS)
    ),
    "compute_loss of one's own": Feature(build=without_call, data=lambda: INPUTS),
}
