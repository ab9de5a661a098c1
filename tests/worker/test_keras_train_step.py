"""A custom train_step under FedAsync's proximal term, and a round that ends in the middle of Keras's fit."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow

from fluffle.errors import TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Site, Trained
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras


def trained(task: KerasTask, weights: Weights, plan: Plan) -> Trained:
    task.prepare(Site())
    return task.train(weights, plan, seed=0, progress=lambda _done, _total: None)


@needs_tensorflow
def test_a_train_step_that_gives_the_optimizer_gradients_alone_is_trained_and_pulled_to_the_base() -> None:
    keras = import_keras()
    tensorflow = importlib.import_module("tensorflow")

    def train_step(model: Any, minibatch: Any) -> dict[str, object]:
        x, y = minibatch
        with tensorflow.GradientTape() as tape:
            loss = model.compute_loss(y=y, y_pred=model(x, training=True))
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables))
        return {"loss": loss}

    def build_model() -> KerasModel:
        given = keras.Input((1,))
        outputs = keras.layers.Dense(1, use_bias=False, name="dense")(given)
        model = type("Own", (keras.Model,), {"train_step": train_step})(given, outputs)
        model.compile(keras.optimizers.SGD(0.01), loss="mean_squared_error")
        return model

    task = KerasTask(build_model, lambda _: (np.full((1, 1), 3.0), np.full((1, 1), 12.0)))
    weights = {"dense/kernel": np.full((1, 1), 2.0, np.float32)}
    task.initial_weights(0)

    free = trained(task, weights, Plan(local_steps=2))
    pulled = trained(task, weights, Plan(local_steps=2, proximal_mu=5.0))

    # The loss is (3w - 12)^2: see the test of two SGD steps in test_keras_task.py.
    assert free.weights["dense/kernel"].item() == pytest.approx(2.6552, abs=1e-5)
    assert pulled.weights["dense/kernel"].item() == pytest.approx(2.6552 - 0.018, abs=1e-5)


def a_model_with_its_own_optimizer(place: str) -> KerasModel:
    """A model whose train_step uses another optimizer than model.optimizer, as that of a GAN does."""
    keras = import_keras()
    tensorflow = importlib.import_module("tensorflow")
    own = keras.optimizers.SGD(0.01)

    def train_step(model: Any, minibatch: Any) -> dict[str, object]:
        x, y = minibatch
        with tensorflow.GradientTape() as tape:
            loss = model.compute_loss(y=y, y_pred=model(x, training=True))
        own.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss}

    given = keras.Input((1,))
    model = type("Own", (keras.Model,), {"train_step": train_step})(given, keras.layers.Dense(1)(given))
    model.compile(loss="mean_squared_error")
    places: Mapping[str, object] = {"alone": own, "in a list": [own], "in a dictionary": {"g": own}}
    model.generator_optimizer = places[place]
    return model


@needs_tensorflow
@pytest.mark.parametrize("place", ["alone", "in a list", "in a dictionary"])
def test_a_plan_that_would_not_reach_the_models_own_optimizers_is_refused(place: str) -> None:
    task = KerasTask(
        lambda: a_model_with_its_own_optimizer(place), lambda _: (np.ones((8, 1)), np.ones((8, 1)))
    )
    weights = task.initial_weights(0)

    assert trained(task, weights, Plan(keep_optimizer=True)).examples == 8
    for plan, name in {
        Plan(learning_rate=0.1): "learning_rate",
        Plan(learning_rate_scale=0.5): "learning_rate_schedule",
        Plan(proximal_mu=0.1): "proximal_mu",
    }.items():
        with pytest.raises(TaskError, match=rf"{name} would not reach .* \(generator_optimizer\)"):
            trained(task, weights, plan)


class Aborted(BaseException):
    """Ends a round, as a worker does."""


def test_a_round_that_is_aborted_in_the_middle_leaves_no_trace_in_the_next() -> None:
    keras = import_keras()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 4)).astype(np.float32), random.integers(0, 3, 64)

    def build_model() -> KerasModel:
        layers = [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
        model = keras.Sequential([*layers, keras.layers.Softmax()])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def abort(done: int, total: int) -> None:
        if done == 3 < total:
            raise Aborted

    task, plan = KerasTask(build_model, lambda _: (x, y)), Plan(batch_size=8, local_epochs=2)
    weights = task.initial_weights(0)
    expected = trained(task, weights, plan).weights

    with pytest.raises(Aborted):
        task.train(weights, plan, seed=1, progress=abort)
    again = trained(task, weights, plan).weights

    assert all(np.array_equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_an_evaluation_of_several_minibatches_gives_what_keras_gives(steps_per_execution: int) -> None:
    keras, random = import_keras(), np.random.default_rng(0)
    inputs, labels = random.normal(size=(600, 3)), random.integers(0, 2, 600)
    counts = random.integers(0, 3, 600).astype(np.float32)

    def build_model() -> KerasModel:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
        model.compile(
            "sgd",
            loss="binary_crossentropy",
            metrics=["accuracy", keras.metrics.AUC(name="auc")],
            weighted_metrics=[keras.metrics.BinaryAccuracy(name="weighted")],
            steps_per_execution=steps_per_execution,
        )
        return model

    task = KerasTask(build_model, lambda _: (inputs, labels), lambda: (inputs, labels, counts))
    weights = task.initial_weights(0)

    found = [task.evaluate(weights) for _ in range(2)][-1]

    model = build_model()
    model.set_weights(list(weights.values()))
    expected = model.evaluate(
        inputs, labels, batch_size=256, sample_weight=counts, verbose=0, return_dict=True
    )
    assert found == pytest.approx(expected, rel=1e-5)
