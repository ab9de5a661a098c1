"""`--quantize-training`: a Keras model computes in 16 bits, and its weights and its layout stay as they are.

Public reports tell of losses that become NaN, and of a loss scale that a training step of one's own does not
apply (keras #16552, tensorflow #33484 and #45568).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from features.feature import needs_tensorflow
from in_threads import all_of, digits_of, held_out_digits
from working import CountingTask

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, TaskError
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.loop import WorkerResult
from fluffle_worker.pace.precision import Precision, with_precision
from fluffle_worker.running import run_evaluator, run_worker

PRECISIONS: tuple[Precision, ...] = ("mixed_bfloat16", "mixed_float16")


def a_network() -> keras.Model:
    layers = keras.layers
    stack = [layers.Reshape((8, 8, 1)), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU()]
    model = keras.Sequential([keras.Input((64,)), *stack, layers.Flatten(), layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def a_recurrent_network() -> keras.Model:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((64,)), layers.Reshape((8, 8)), layers.LSTM(16), layers.Dense(10, "softmax")]
    )
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize(
    ("network", "precision"), [(a_network, "mixed_bfloat16"), (a_recurrent_network, "mixed_float16")]
)
def test_layers_compute_in_16_bits_and_what_is_sent_stays_as_it_is(
    network: Callable[[], keras.Model], precision: Precision
) -> None:
    plain = CheckedTask(KerasTask(network, digits_of, held_out_digits))
    task = KerasTask(network, digits_of, held_out_digits).with_dtype_policy(precision)
    quantized = CheckedTask(task)
    first = quantized.model(0)
    quantized.prepare(Site())

    trained = quantized.train(first.weights, Plan(local_epochs=2), seed=0, progress=lambda *_: None)

    assert first.layout == plain.model(0).layout
    assert {array.dtype for array in trained.weights.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in trained.weights.values())
    assert trained.metrics["loss"] < 2.0
    # Whoever evaluates in full precision finds the same model.
    assert plain.evaluate(trained.weights)["accuracy"] == pytest.approx(
        quantized.evaluate(trained.weights)["accuracy"], abs=0.03
    )
    # Of this thread and of later models, nothing has changed.
    assert keras.config.dtype_policy().name == "float32"


def test_float16_scales_the_loss_and_a_rate_of_the_plan_reaches_the_optimizer_inside() -> None:
    task = KerasTask(a_network, digits_of).with_dtype_policy("mixed_float16")
    checked = CheckedTask(task)
    weights = checked.model(0).weights
    checked.prepare(Site())

    still = checked.train(weights, Plan(learning_rate=1e-30), seed=0, progress=lambda *_: None)
    moved = checked.train(weights, Plan(learning_rate=0.01), seed=0, progress=lambda *_: None)

    kernel = "dense/kernel"
    assert np.allclose(still.weights[kernel], weights[kernel], atol=1e-6)
    assert np.abs(moved.weights[kernel].astype(float) - weights[kernel]).max() > 0.01
    # The rate of an adaptive optimizer, and not of what scales the loss.
    assert checked.learning_rate_power() == 0.5


def test_a_model_that_sets_its_own_precision_is_refused() -> None:
    def own_precision() -> keras.Model:
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, "softmax", dtype="float32")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    task = CheckedTask(KerasTask(own_precision, digits_of).with_dtype_policy("mixed_bfloat16"))

    with pytest.raises(
        TaskError, match="quantize_training mixed_bfloat16 has no effect: no layer with weights"
    ):
        task.model(0)


@needs_tensorflow
def test_a_training_step_of_ones_own_is_warned_that_it_must_scale_its_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def train_step(model: keras.Model, data: Any) -> Any:
        return keras.Model.train_step(model, data)

    def own_step() -> keras.Model:
        inputs = keras.Input((64,))
        model = type("Own", (keras.Model,), {"train_step": train_step})(
            inputs, keras.layers.Dense(10, "softmax")(inputs)
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    for precision in PRECISIONS:
        CheckedTask(KerasTask(own_step, digits_of).with_dtype_policy(precision)).model(0)

    assert caplog.text.count("must multiply its loss by optimizer.scale_loss") == 1


def test_a_task_without_keras_cannot_be_quantized() -> None:
    task = CountingTask()

    assert with_precision(task, None) is task
    with pytest.raises(ConfigError, match="quantize_training mixed_float16 is for KerasTasks, and the task"):
        with_precision(task, "mixed_float16")


def test_workers_in_two_precisions_and_one_without_train_one_model(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    precisions = ("mixed_bfloat16", "mixed_float16", None)

    def a_task() -> KerasTask:
        return KerasTask(a_network, digits_of, held_out_digits)

    def work(site: int) -> WorkerResult:
        mine = {"site": site, "sites": 3, "spool": tmp_path, "quantize_training": precisions[site]}
        return run_worker(a_task(), name=f"site-{site}", **(where | mine))

    led, _, *worked = asyncio.run(
        all_of(
            lambda: run_aggregator(a_task(), target="accuracy>=0.9", max_updates=90, **where),
            lambda: run_evaluator(a_task(), **where),
            *(lambda site=site: work(site) for site in range(3)),
        )
    )

    assert isinstance(led, AggregatorResult)
    assert "accuracy>=0.9" in led.ended_by
    assert all(isinstance(each, WorkerResult) and each.refused == 0 for each in worked)
