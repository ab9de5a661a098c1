"""A custom train_step under FedAsync's proximal term, which sits between it and the optimizer."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow

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
