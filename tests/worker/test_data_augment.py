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
from fluffle_worker.keras_task import KerasModel, KerasTask, NotStackable, RoundAtSite, import_keras
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
def test_rounds_whose_minibatches_are_augmented_are_not_stacked() -> None:
    x = IMAGES.reshape(400, 64)
    task = KerasTask(lambda: a_model((64,), 10), lambda _: (x, DIGITS), data=DataSteps(augment=("noise",)))
    task.initial_weights(0)
    task.prepare(Site())

    with pytest.raises(NotStackable, match="the minibatches are augmented"):
        task.stacked([task])


@needs_tensorflow
@pytest.mark.parametrize("balance", ["none", "weights", "focal", "balanced_softmax", "fedlc"])
def test_rounds_of_sites_with_other_classes_end_where_each_ends_by_itself(balance: str) -> None:
    x, plan = IMAGES.reshape(400, 64) / 16, Plan(local_epochs=2, batch_size=32)
    chosen = [DIGITS < 3, DIGITS % 2 == 1, (DIGITS < 9) | (np.arange(400) % 7 == 0)]
    shares = [(x[own], DIGITS[own]) for own in chosen]
    first = KerasTask(lambda: a_model((64,), 10), lambda _: shares, data=DataSteps(balance=balance))
    tasks = [first.with_train_data(lambda site: shares[site.index]) for _ in shares]
    weights = first.initial_weights(0)
    for at, task in enumerate(tasks):
        task.prepare(Site(index=at, count=3))
    alone = [task.train(weights, plan, seed=at, progress=ignore_progress) for at, task in enumerate(tasks)]

    together = tasks[0].stacked(tasks).train([RoundAtSite(weights, at, at) for at in (2, 0, 1)], plan)

    for at, (trained, _) in zip((2, 0, 1), together, strict=True):
        assert kernel(trained) == pytest.approx(kernel(alone[at]), abs=1e-5)
    assert not np.allclose(kernel(alone[0]), kernel(alone[1]), atol=1e-3)


@needs_tensorflow
@pytest.mark.parametrize("loss", ["mse", "sparse_categorical_crossentropy"])
def test_mixup_trains_on_a_target_for_each_step(loss: str) -> None:
    outputs = 1 if loss == "mse" else 17

    def build() -> KerasModel:
        keras = import_keras()
        model = keras.Sequential([keras.Input((8, 8)), keras.layers.Dense(outputs)])
        model.compile("sgd", keras.losses.get(loss) if loss == "mse" else loss)
        return model

    steps = IMAGES.reshape(400, 8, 8)
    task = KerasTask(build, lambda _: (steps, steps[:, :, 0]), data=DataSteps(augment=("mixup",)))
    weights = task.initial_weights(0)
    task.prepare(Site())

    ended = task.train(weights, Plan(local_epochs=1), seed=1, progress=ignore_progress)

    assert ended.examples == 400


@needs_tensorflow
@pytest.mark.parametrize("is_stream", [False, True])
def test_whole_numbers_that_an_embedding_reads_are_not_augmented(is_stream: bool) -> None:
    def build() -> KerasModel:
        keras = import_keras()
        layers = [keras.layers.Embedding(17, 4), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
        model = keras.Sequential([keras.Input((64,)), *layers])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    tokens = IMAGES.reshape(400, 64).astype(np.int64)
    data = stream(tokens, DIGITS) if is_stream else (tokens, DIGITS)
    task = KerasTask(build, lambda _: data, data=DataSteps(augment=("noise",)))
    weights = task.initial_weights(0)
    task.prepare(Site())

    for refused in (
        lambda: task.train(weights, Plan(), seed=1, progress=ignore_progress),
        lambda: task.require_trainable(Site()),
    ):
        with pytest.raises(TaskError, match=r"whole numbers that the layer embedding\w* reads as tokens"):
            refused()
