"""A worker whose machine is too small: memory that really runs out, and what the worker does then.

Public reports ask how to go on after such an error (keras #10477); tell of memory that the error itself holds
until garbage is collected (devol #18); and of searches for a batch size that never trained what they tried,
or whose result ran out of memory later (lightning #21903 and #8028).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from working import updates_of

from fluffle.checked_task import CheckedTask
from fluffle.errors import OutOfMemory
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Progress, Site, Trained
from fluffle_worker.keras_task import KerasTask

pytestmark = needs_tensorflow

# 4 TiB in one piece, which no allocator gives.
TOO_MANY_FLOATS = 2**40


def greedy(most: int) -> keras.Layer:
    """Return a layer that asks for far too much memory when a minibatch has more examples than this."""

    def call(x: Any) -> Any:
        size = tf.where(tf.shape(x)[0] > most, tf.constant(TOO_MANY_FLOATS, tf.int64), 1)
        return x + 0.0 * tf.random.uniform([size])[0]

    return keras.layers.Lambda(call)


def digits(_site: Site) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    return (x[:320] / 16).astype(np.float32), y[:320]


def a_task(most: int, train_data: Callable[[Site], object] = digits, optimizer: str = "sgd") -> KerasTask:
    def build_model() -> keras.Model:
        layers = [keras.Input((64,)), greedy(most), keras.layers.Dense(10, "softmax")]
        model = keras.Sequential(layers)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return KerasTask(build_model, train_data)


def work(task: Any, plan: Plan, folder: Path, *, updates: int, step_delay_s: float = 0.0) -> list[Any]:
    """Let a worker of a prepared task send so many updates, and return them."""
    folder.mkdir(exist_ok=True)
    task.prepare(Site())
    return updates_of(task, plan, folder, updates=updates, step_delay_s=step_delay_s)


def test_a_round_that_runs_out_of_memory_is_trained_again_with_smaller_minibatches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = work(a_task(most=8), Plan(batch_size=32), tmp_path, updates=2)

    assert (first.batch_size, second.batch_size) == (8, 8)
    assert (first.learning_rate_scale, second.learning_rate_scale) == (0.25, 0.25)
    assert first.steps == second.steps == 40
    assert first.examples == 320
    assert 0 < second.loss < 2.4
    said = [line for line in caplog.text.splitlines() if "out of memory: the round is trained again" in line]
    assert len(said) == 2
    assert "ResourceExhaustedError: OOM when allocating tensor with shape[1099511627776]" in said[0]
    assert "Graph execution error" not in said[0]
    assert "Hint" not in said[0]
    # Where they fit, there is nothing to say.
    [plain] = work(a_task(most=32), Plan(batch_size=32), tmp_path / "plain", updates=1)
    assert (plain.batch_size, plain.learning_rate_scale) == (32, 1.0)


def test_the_moments_of_an_optimizer_survive_a_round_that_ran_out_of_memory(tmp_path: Path) -> None:
    task = a_task(most=16, optimizer="adam")

    first, second = work(task, Plan(batch_size=32, keep_optimizer=True), tmp_path, updates=2)

    assert first.learning_rate_scale == second.learning_rate_scale == 0.5**0.5
    state = task.optimizer_state()
    [steps] = [int(array) for name, array in state.items() if "iteration" in name]
    # 20 in each of the two rounds that ended, and none of the one that did not.
    assert steps == 40


def test_memory_that_suffices_for_no_example_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        OutOfMemory, match=r"train raised ResourceExhaustedError: .*One example at a time is too much"
    ):
        work(a_task(most=0), Plan(batch_size=4), tmp_path, updates=1)


def test_minibatches_that_the_data_comes_in_are_not_halved(tmp_path: Path) -> None:
    def batched(site: Site) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(digits(site)).batch(32)

    with pytest.raises(OutOfMemory, match="The size of the minibatches is the task's own: make them smaller"):
        work(a_task(most=8, train_data=batched), Plan(batch_size=32), tmp_path, updates=1)


def test_a_search_for_a_larger_size_ends_where_memory_runs_out(tmp_path: Path) -> None:
    # Each step takes about as long: a larger minibatch is faster on any machine.
    plan = Plan(batch_size=8, max_batch_size=256)
    updates = work(a_task(most=40), plan, tmp_path, updates=10, step_delay_s=0.05)

    sizes = [each.batch_size for each in updates]
    assert sizes[:4] == [8, 8, 16, 16]
    # 64 was tried, and each later round has trained what fits.
    assert max(sizes) == 32
    assert sizes[-1] == 32
    assert max(each.learning_rate_scale for each in updates) == updates[-1].learning_rate_scale == 4.0


class Numpy:
    """A task without a framework, which asks numpy for too much when a minibatch has more than 8 examples."""

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {"w": np.zeros(3, np.float32)}

    def prepare(self, site: Site) -> int:
        """See Task."""
        return 100

    def learning_rate_power(self) -> float:
        """See ResizableTask."""
        return 1.0

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        if plan.batch_size > 8:
            np.empty(TOO_MANY_FLOATS, np.float32)
        progress(1, 1)
        return Trained({"w": weights["w"].astype(np.float32) + np.float32(1)}, 100, {})

    def evaluate(self, weights: Weights) -> dict[str, float]:
        """See Task."""
        return {"loss": 0.0}

    def save(self, weights: Weights, path: Path) -> None:
        """See Task."""

    def load(self, path: Path) -> Weights:
        """See Task."""
        return self.initial_weights(0)


def test_any_task_that_says_how_its_rate_follows_the_size_is_helped(tmp_path: Path) -> None:
    [update] = work(Numpy(), Plan(batch_size=32), tmp_path, updates=1)

    assert (update.batch_size, update.learning_rate_scale) == (8, 0.25)


@pytest.mark.parametrize(
    ("optimizer", "power"),
    [
        (lambda kinds: kinds.SGD(0.1, momentum=0.9), 1.0),
        (lambda kinds: kinds.Adam(0.01), 0.5),
        (lambda kinds: kinds.RMSprop(0.01), 0.5),
        (lambda kinds: kinds.LossScaleOptimizer(kinds.SGD(0.1)), 1.0),
        (lambda kinds: kinds.SGD(kinds.schedules.ExponentialDecay(0.1, 10, 0.9)), 0.0),
    ],
    ids=["SGD", "Adam", "RMSprop", "scaled SGD", "a schedule of its own"],
)
def test_a_keras_task_says_how_its_learning_rate_follows_the_size(
    optimizer: Callable[[Any], Any], power: float
) -> None:
    task = CheckedTask(a_task(most=32, optimizer=optimizer(keras.optimizers)))
    task.model()
    task.prepare(Site())

    assert task.learning_rate_power() == power
