"""Data steps inside the training step: augmentation by name, streams, and what cannot be done there."""

import importlib
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.task import Site, Trained
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasModel, KerasTask, NotStackable, import_keras
from fluffle_worker.round import ignore_progress

Array = NDArray[Any]
IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 8, 8, 1).astype(np.float32)[:400]
DIGITS = DIGITS[:400]


def a_model(shape: tuple[int, ...], outputs: int) -> KerasModel:
    keras = import_keras()
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(outputs, "softmax")]
    )
    model.compile(keras.optimizers.SGD(0.01), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained_on(data: Any, steps: DataSteps | None, shape: tuple[int, ...], *, seed: int = 1) -> Trained:
    task = KerasTask(lambda: a_model(shape, 10), lambda _: data, data=steps)
    weights = task.initial_weights(0)
    task.prepare(Site())
    return task.train(weights, Plan(local_epochs=1), seed=seed, progress=ignore_progress)


def kernel(trained: Trained) -> Array:
    return next(np.asarray(array) for array in trained.weights.values() if array.ndim == 2)


@needs_tensorflow
@pytest.mark.parametrize(
    ("x", "augment"),
    [
        (IMAGES, "rand_augment:0.3"),
        (np.repeat(IMAGES, 3, axis=3), "rand_augment"),
        (IMAGES, "erase"),
        (IMAGES, "mixup"),
        (IMAGES, "cutmix"),
        (IMAGES.reshape(400, 8, 8), "jitter"),
        (IMAGES.reshape(400, 8, 8), "mixup"),
        (IMAGES.reshape(400, 64), "mask:0.2"),
    ],
)
def test_a_round_is_augmented_in_the_same_way_for_the_same_seed(x: Array, augment: str) -> None:
    steps = DataSteps(augment=(augment,))

    first, again, other = (trained_on((x, DIGITS), steps, x.shape[1:], seed=seed) for seed in (1, 1, 2))
    plain = trained_on((x, DIGITS), None, x.shape[1:])

    assert first.examples == 400
    assert np.isfinite(kernel(first)).all()
    assert np.array_equal(kernel(first), kernel(again))
    assert not np.array_equal(kernel(first), kernel(other))
    assert not np.array_equal(kernel(first), kernel(plain))


def test_an_augmentation_for_other_inputs_is_refused_by_name() -> None:
    flat = IMAGES.reshape(400, 64)

    with pytest.raises(TaskError, match=r"augment rand_augment:0.5 is for images .* the inputs have 2 axes"):
        trained_on((flat, DIGITS), DataSteps(augment=("rand_augment",)), (64,))


def stream(x: Array, y: Array) -> Any:
    return importlib.import_module("tensorflow").data.Dataset.from_tensor_slices((x, y)).batch(50)


@needs_tensorflow
@pytest.mark.parametrize("balance", ["weights", "class_balanced", "balanced_softmax", "focal"])
def test_a_stream_is_balanced_as_arrays_in_the_same_order_are(balance: str) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    steps = DataSteps(balance=balance)
    whole = Plan(local_epochs=1, batch_size=1000)

    def kernel_of(data: Any) -> Array:
        task = KerasTask(lambda: a_model((30,), 2), lambda _: data, data=steps)
        weights = task.initial_weights(0)
        task.prepare(Site())
        return kernel(task.train(weights, whole, seed=0, progress=ignore_progress))

    assert kernel_of(stream(x, y).unbatch().batch(1000)) == pytest.approx(kernel_of((x, y)), abs=1e-5)


@needs_tensorflow
def test_a_stream_is_augmented() -> None:
    x = IMAGES.reshape(400, 64)

    plain = trained_on(stream(x, DIGITS), DataSteps(), (64,))
    noisy = trained_on(stream(x, DIGITS), DataSteps(augment=("noise:0.5",)), (64,))

    assert not np.array_equal(kernel(plain), kernel(noisy))
    assert noisy.examples == 400


@needs_tensorflow
def test_steps_that_need_all_rows_are_refused_by_name_for_a_stream() -> None:
    steps = DataSteps(impute="knn", outliers="mad", labels="drop", balance="smote")

    with pytest.raises(TaskError, match="steps impute knn, outliers mad, labels drop, balance smote:5 need"):
        trained_on(stream(IMAGES, DIGITS), steps, (8, 8, 1))


@needs_tensorflow
def test_missing_values_in_a_stream_are_never_trained_on() -> None:
    x = IMAGES.copy()
    x[7, 0, 0, 0] = np.nan

    with pytest.raises(TaskError, match="holds 1 missing or infinite values"):
        trained_on(stream(x, DIGITS), DataSteps(), (8, 8, 1))


@needs_tensorflow
@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (DataSteps(balance="fedlc"), "balance fedlc:1 changes the loss by the classes of each site"),
        (DataSteps(augment=("noise",)), "the minibatches are augmented"),
    ],
)
def test_what_acts_inside_the_step_of_one_site_is_not_stacked(steps: DataSteps, reason: str) -> None:
    x = IMAGES.reshape(400, 64)
    task = KerasTask(lambda: a_model((64,), 10), lambda _: (x, DIGITS), data=steps)
    task.initial_weights(0)
    task.prepare(Site())

    with pytest.raises(NotStackable, match=reason):
        task.stacked([task])
