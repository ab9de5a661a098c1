"""Which weights of a Keras model are trained, statistics, frozen and local, for layers that people use."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluffle.checked_task import CheckedTask
from fluffle.errors import TaskError
from fluffle.model import Group
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

Floats = NDArray[np.float32]
Build = Callable[[ModuleType], KerasModel]

X: Floats = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
Y: Floats = (X[:, :1] > 0).astype(np.float32)


def silent(done: int, total: int) -> None:
    """Report nothing."""


def compiled(model: KerasModel) -> KerasModel:
    model.compile("sgd", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def a_task(build: Build, x: NDArray[Any] = X, *, local: tuple[str, ...] = ()) -> KerasTask:
    return KerasTask(lambda: compiled(build(import_keras())), lambda _: (x, Y), lambda: (x, Y), local=local)


def groups(task: KerasTask) -> dict[str, Group]:
    task.initial_weights(0)
    return dict(task.tensor_groups())


def batch_normalization(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    return keras.Sequential([keras.Input((6,)), layers.BatchNormalization(), layers.Dense(1, "sigmoid")])


def in_a_wrapper(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((2,)), layers.BatchNormalization(), layers.Dense(3)], name="inner")
    model = [
        layers.Reshape((3, 2)),
        layers.TimeDistributed(inner),
        layers.Flatten(),
        layers.Dense(1, "sigmoid"),
    ]
    return keras.Sequential([keras.Input((6,)), *model])


def spectral(keras: ModuleType) -> KerasModel:
    dense = keras.layers.SpectralNormalization(keras.layers.Dense(4))
    return keras.Sequential([keras.Input((6,)), dense, keras.layers.Dense(1, "sigmoid")])


def adapted(keras: ModuleType) -> Any:
    layer = keras.layers.Normalization()
    layer.adapt(X)
    return layer


def normalization(keras: ModuleType) -> KerasModel:
    return keras.Sequential([keras.Input((6,)), adapted(keras), keras.layers.Dense(1, "sigmoid")])


def own_statistic(keras: ModuleType) -> KerasModel:
    def build(layer: Any, shape: tuple[int, ...]) -> None:
        layer.peak = layer.add_weight(name="peak", shape=shape[1:], initializer="zeros", trainable=False)

    def call(layer: Any, x: Any, training: bool = False) -> Any:
        if training:
            layer.peak.assign(keras.ops.maximum(layer.peak, keras.ops.max(x, axis=0)))
        return x

    running_max = type("RunningMax", (keras.layers.Layer,), {"build": build, "call": call})
    return keras.Sequential([keras.Input((6,)), running_max(), keras.layers.Dense(1, "sigmoid")])


def frozen_base(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    base = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(8)], name="base"
    )
    base.trainable = False
    return keras.Sequential([keras.Input((6,)), base, layers.Dense(1, "sigmoid", name="head")])


def frozen_by_argument(keras: ModuleType) -> KerasModel:
    base = keras.layers.Dense(8, trainable=False, name="base")
    return keras.Sequential([keras.Input((6,)), base, keras.layers.Dense(1, "sigmoid", name="head")])


def lora(keras: ModuleType) -> KerasModel:
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, name="base"), keras.layers.Dense(1, "sigmoid", name="head")]
    )
    model.get_layer("base").enable_lora(2)
    return model


def quantized(keras: ModuleType) -> KerasModel:
    model = lora(keras)
    model.get_layer("base").quantize("int8")
    return model


def stateful(keras: ModuleType) -> KerasModel:
    inputs = keras.Input(batch_shape=(4, 3, 2))
    state = keras.layers.GRU(5, stateful=True, name="gru")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="head")(state))


STATISTICS: dict[Build, set[str]] = {
    batch_normalization: {"batch_normalization/moving_mean", "batch_normalization/moving_variance"},
    in_a_wrapper: {
        "inner/batch_normalization/moving_mean",
        "inner/batch_normalization/moving_variance",
    },
    spectral: {"spectral_normalization/vector_u"},
    normalization: {"normalization/mean", "normalization/variance", "normalization/count"},
    own_statistic: {"running_max/peak"},
}


@pytest.mark.parametrize("build", STATISTICS, ids=lambda build: build.__name__)
def test_what_a_trainable_layer_computes_from_data_is_a_statistic(
    build: Build,
) -> None:
    found = groups(a_task(build))

    assert {name for name, group in found.items() if group == "statistic"} == STATISTICS[build]
    assert {group for name, group in found.items() if name not in STATISTICS[build]} == {"trained"}


@pytest.mark.parametrize("build", [frozen_base, frozen_by_argument, lora], ids=lambda build: build.__name__)
def test_frozen_layers_do_not_travel(build: Build) -> None:
    task = a_task(build)
    found = groups(task)

    kernels = {
        name: group for name, group in found.items() if name.startswith("base/") and "lora" not in name
    }
    assert kernels
    assert {group for name, group in kernels.items() if "bias" not in name or build is not lora} == {"frozen"}
    assert found["head/kernel"] == "trained"
    assert "base/kernel" not in CheckedTask(task).model().weights


def test_of_a_layer_with_lora_only_the_adapters_and_what_is_trained_beside_them_travel() -> None:
    assert groups(a_task(lora)) == {
        "base/lora_kernel_a": "trained",
        "base/lora_kernel_b": "trained",
        "base/kernel": "frozen",
        "base/bias": "trained",
        "head/kernel": "trained",
        "head/bias": "trained",
    }


def test_of_a_quantized_layer_only_its_adapters_travel() -> None:
    found = groups(a_task(quantized))

    assert {name for name, group in found.items() if group == "frozen"} >= {
        "base/kernel",
        "base/kernel_scale",
    }
    assert {name for name, group in found.items() if group == "trained"} >= {
        "base/lora_kernel_a",
        "base/lora_kernel_b",
        "head/kernel",
    }
    assert "statistic" not in found.values()


def test_what_a_stateful_layer_remembers_does_not_travel_and_is_forgotten_before_each_round() -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 2)).astype(np.float32)
    task = a_task(stateful, x)
    weights = task.initial_weights(0)
    task.prepare(Site())
    plan = Plan(batch_size=4)

    first = task.train(weights, plan, seed=1, progress=silent)
    again = task.train(weights, plan, seed=1, progress=silent)

    assert not [name for name in weights if "state" in name]
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in weights)


def test_frozen_weights_are_what_they_were_after_a_round_and_statistics_of_frozen_layers_too() -> None:
    task = a_task(frozen_base)
    before = task.initial_weights(0)
    task.prepare(Site())
    weights = {name: array for name, array in before.items() if task.tensor_groups()[name] == "trained"}

    trained = task.train(weights, Plan(local_epochs=3), seed=0, progress=silent)

    assert set(trained.weights) == {"head/kernel", "head/bias"}
    assert task.evaluate(trained.weights)["accuracy"] >= 0
    after = CheckedTask(task).model().layout.frozen
    assert after is not None
    assert after.tensors == 8


def test_local_weights_are_named_by_patterns_and_keep_what_the_site_has_trained(tmp_path: Path) -> None:
    task = a_task(batch_normalization, local=("dense/*", "*/moving_*"))
    checked = CheckedTask(task)
    model = checked.model()
    checked.prepare(Site())

    trained = checked.train({**model.weights, **model.local}, Plan(), seed=0, progress=silent)
    checked.save({**trained.weights, **trained.local}, tmp_path / "own.keras")

    assert set(model.weights) == {"batch_normalization/gamma", "batch_normalization/beta"}
    assert set(trained.local) == {
        "dense/kernel",
        "dense/bias",
        "batch_normalization/moving_mean",
        "batch_normalization/moving_variance",
    }
    assert np.any(trained.local["dense/kernel"] != model.local["dense/kernel"])
    stored = a_task(batch_normalization).load(tmp_path / "own.keras")
    assert np.array_equal(stored["dense/kernel"], trained.local["dense/kernel"])


def test_a_pattern_that_names_no_weight_is_refused_and_so_is_text_in_place_of_a_list() -> None:
    with pytest.raises(
        TaskError,
        match=r"no weight matches 'hed/\*'; the model has batch_normalization/gamma, .*, dense/bias",
    ):
        a_task(batch_normalization, local=("hed/*",)).initial_weights(0)
    with pytest.raises(TaskError, match=r"must be a list of patterns, such as \['head/\*'\]"):
        KerasTask(lambda: None, lambda _: None, local="head/*")


def nested_normalization(keras: ModuleType) -> KerasModel:
    inner = keras.Sequential([keras.Input((6,)), adapted(keras)], name="inner")
    return keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(1, "sigmoid")])


def wrapped_normalization(keras: ModuleType) -> KerasModel:
    outer = type("Outer", (keras.layers.Layer,), {"call": lambda layer, x: layer.inner(x)})()
    outer.inner = adapted(keras)
    return keras.Sequential([keras.Input((6,)), outer, keras.layers.Dense(1, "sigmoid")])


@pytest.mark.parametrize("build", [normalization, nested_normalization, wrapped_normalization])
def test_a_normalization_computes_with_the_values_that_came_also_after_it_was_compiled(build: Build) -> None:
    task = a_task(build)
    weights = task.initial_weights(0)
    task.prepare(Site())
    first = task.train(weights, Plan(), seed=0, progress=silent), task.evaluate(weights)
    mean = next(name for name in weights if name.endswith("mean"))
    moved = {**weights, mean: weights[mean].astype(np.float32) + 3}

    trained, evaluated = task.train(moved, Plan(), seed=0, progress=silent), task.evaluate(moved)

    fresh = a_task(build)
    fresh.initial_weights(0)
    fresh.prepare(Site())
    assert evaluated["loss"] != first[1]["loss"]
    assert evaluated == fresh.evaluate(moved)
    assert trained.metrics["loss"] != first[0].metrics["loss"]
    assert trained.metrics == fresh.train(moved, Plan(), seed=0, progress=silent).metrics
