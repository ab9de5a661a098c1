"""Data steps of a KerasTask, on real data with dirt whose place is known."""

import importlib
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from fluffle.checked_task import CheckedTask
from fluffle.errors import TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Site, Trained, load_task
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.round import ignore_progress

Array = NDArray[Any]


def breast_cancer(missing: float = 0.0) -> tuple[Array, Array]:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x[np.random.default_rng(0).random(x.shape) < missing] = np.nan
    return x, y


def a_model(
    inputs: int = 30, outputs: int = 2, loss: object = "sparse_categorical_crossentropy"
) -> KerasModel:
    keras = import_keras()
    last = {"sparse_categorical_crossentropy": "softmax", "binary_crossentropy": "sigmoid"}
    activation = last.get(loss) if isinstance(loss, str) else None
    model = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(outputs, activation)])
    model.compile(keras.optimizers.SGD(0.1), loss=loss, metrics=["accuracy"])
    return model


def a_task(data: tuple[Any, ...], steps: DataSteps, **model: Any) -> KerasTask:
    return KerasTask(lambda: a_model(data[0].shape[1], **model), lambda _site: data, data=steps)


def a_stream(*arrays: Array) -> Any:
    return importlib.import_module("tensorflow").data.Dataset.from_tensor_slices(arrays).batch(100)


def one_round(task: KerasTask, plan: Plan | None = None) -> tuple[Weights, Trained]:
    weights = task.initial_weights(0)
    task.prepare(Site())
    plan = plan or Plan(local_epochs=1, batch_size=1000)
    return weights, task.train(weights, plan, seed=1, progress=ignore_progress)


def as_float(array: Array) -> NDArray[np.float64]:
    return np.asarray(array, np.float64)


def gradient(task: KerasTask) -> Array:
    """The gradient of one step over all rows, from what plain SGD with the rate 0.1 made of it."""
    weights, trained = one_round(task)
    both = [(as_float(weights[name]) - as_float(trained.weights[name])) / 0.1 for name in sorted(weights)]
    return np.concatenate([each.reshape(-1) for each in both])


def softmax_gradient(x: Array, y: Array, weights: Weights, offsets: Array, of_rows: Array) -> Array:
    """The gradient of the weighted cross-entropy of softmax(xW + b + offsets), in plain numpy."""
    bias, kernel = (as_float(weights[name]) for name in sorted(weights))
    logits = x @ kernel + bias + offsets
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - np.eye(kernel.shape[1])[y]) * of_rows[:, None] / len(x)
    return np.concatenate([error.sum(axis=0), (x.T @ error).reshape(-1)])


def test_missing_values_are_filled_with_the_median_of_the_training_rows_before_the_first_round() -> None:
    x, y = breast_cancer(missing=0.2)
    task = a_task((x, y), DataSteps())

    _, trained = one_round(task, Plan(local_epochs=3))

    assert all(np.isfinite(array).all() for array in trained.weights.values())
    assert trained.metrics["accuracy"] > 0.7
    assert trained.examples == 569
    filled = np.where(np.isnan(x), np.nanmedian(x, axis=0), x)
    assert gradient(task) == pytest.approx(gradient(a_task((filled, y), DataSteps())), abs=1e-6)


@needs_tensorflow
@pytest.mark.parametrize("from_logits", [False, True])
def test_balanced_softmax_adds_the_logarithm_of_this_sites_prior(
    from_logits: bool,
) -> None:
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x, y = np.delete(x, y == 1, axis=0), np.delete(y, y == 1)
    loss = import_keras().losses.SparseCategoricalCrossentropy(from_logits=True) if from_logits else None
    options = {"loss": loss} if loss else {}
    task = a_task((x, y), DataSteps(balance="balanced_softmax"), outputs=3, **options)
    prior = np.bincount(y, minlength=3) / len(y)

    found = gradient(task)

    offsets = np.log(np.where(prior > 0, prior, 1 / len(y)))
    expected = softmax_gradient(x, y, task.initial_weights(0), offsets, np.ones(len(y)))
    assert found == pytest.approx(expected, abs=1e-5)


def test_class_weights_train_as_if_each_row_had_the_weight_of_its_class() -> None:
    x, y = breast_cancer()
    task = a_task((x, y), DataSteps(balance="weights"))

    found = gradient(task)

    of_rows = (len(y) / 2 / np.bincount(y))[y]
    expected = softmax_gradient(x, y, task.initial_weights(0), np.zeros(2), of_rows)
    assert found == pytest.approx(expected, abs=1e-5)


@needs_tensorflow
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_focal_loss_is_that_of_keras(gamma: float) -> None:
    x, y = breast_cancer()
    of_keras = import_keras().losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=gamma)
    keras = import_keras()

    def its_model() -> KerasModel:
        model = a_model()
        model.compile(keras.optimizers.SGD(0.1), loss=of_keras)
        return model

    its = KerasTask(its_model, lambda _site: (x, np.eye(2)[y]))

    found = gradient(a_task((x, y), DataSteps(balance=f"focal:{gamma:g}")))

    assert found == pytest.approx(gradient(its), abs=1e-5)


@needs_tensorflow
def test_one_sigmoid_has_the_logit_of_the_prior_added() -> None:
    x, y = breast_cancer()
    task = a_task((x, y), DataSteps(balance="balanced_softmax"), outputs=1, loss="binary_crossentropy")

    found = gradient(task)

    weights = task.initial_weights(0)
    bias, kernel = (as_float(weights[name]) for name in sorted(weights))
    logits = (x @ kernel + bias)[:, 0] + np.log((y == 1).sum() / (y == 0).sum())
    error = (1 / (1 + np.exp(-logits)) - y) / len(y)
    assert found == pytest.approx(np.concatenate([[error.sum()], x.T @ error]), abs=1e-5)


@needs_tensorflow
def test_the_loss_of_evaluation_is_the_models_own() -> None:
    x, y = breast_cancer()
    plain, balanced = (
        KerasTask(a_model, lambda _: (x, y), lambda: (x, y), data=DataSteps(balance=balance))
        for balance in ("none", "balanced_softmax")
    )
    weights, _ = one_round(plain)
    one_round(balanced)

    assert balanced.evaluate(weights) == plain.evaluate(weights)


@needs_tensorflow
def test_a_loss_that_is_no_cross_entropy_cannot_be_balanced() -> None:
    x, y = breast_cancer()
    task = a_task((x, y), DataSteps(balance="balanced_softmax"), outputs=1, loss="mse")

    with pytest.raises(TaskError, match=r"not mse and the output .* balance by weights or by rows"):
        one_round(task)


def test_labels_that_the_model_has_no_output_for_are_refused() -> None:
    x, y = breast_cancer()
    task = a_task((x, y + 1), DataSteps())

    with pytest.raises(TaskError, match=r"357 labels .* such as 2: its 2 outputs stand for"):
        one_round(task)


@pytest.mark.parametrize(
    ("inputs", "steps", "said"),
    [
        (29, DataSteps(), "train_data gives 30 columns, and the model takes 29"),
        (30, DataSteps(indicator=True), r"60 columns \(the data step indicator added 30 .*takes 30"),
        (60, DataSteps(indicator=True), None),
    ],
)
def test_a_table_that_the_model_has_no_inputs_for_is_refused(
    inputs: int, steps: DataSteps, said: str | None
) -> None:
    task = KerasTask(lambda: a_model(inputs), lambda _: breast_cancer(missing=0.1), data=steps)

    with pytest.raises(TaskError, match=said) if said else nullcontext():
        one_round(task)


def test_texts_may_be_longer_than_the_input_that_an_embedding_names() -> None:
    def build() -> KerasModel:
        keras = import_keras()
        pooled = [keras.layers.Embedding(5, 4), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((10,)), *pooled])
        model.compile("sgd", "mse")
        return model

    task = KerasTask(build, lambda _: (np.ones((8, 20), np.int64), np.ones(8)))

    assert np.isfinite(one_round(task)[1].metrics["loss"])


@needs_tensorflow
def test_labels_that_are_text_are_refused_without_data_steps_too() -> None:
    x, y = breast_cancer()
    names = np.array(["malignant", "benign"])[y]
    task = KerasTask(a_model, lambda _: (x, names))

    with pytest.raises(TaskError, match="returned labels that are text, such as"):
        one_round(task)


@needs_tensorflow
@pytest.mark.parametrize("steps", [None, DataSteps(), DataSteps(balance="fedlc")])
def test_a_stream_with_labels_that_the_model_has_no_output_for_is_refused(steps: DataSteps | None) -> None:
    x, y = breast_cancer()
    data = a_stream(x, y + 1)

    with pytest.raises(TaskError, match=r"train_data returned 357 labels .* such as 2: its 2 outputs stand"):
        one_round(KerasTask(a_model, lambda _: data, data=steps))


@needs_tensorflow
def test_held_out_streams_are_looked_at_too() -> None:
    x, y = breast_cancer()
    task = KerasTask(a_model, lambda _: (x, y), lambda: a_stream(x, y - 1))

    with pytest.raises(TaskError, match=r"eval_data returned 212 labels .* such as -1: its 2 outputs stand"):
        task.evaluate(task.initial_weights(0))


@needs_tensorflow
def test_a_stream_with_labels_that_are_text_is_refused() -> None:
    x, y = breast_cancer()
    names = np.array(["malignant", "benign"])[y]

    with pytest.raises(TaskError, match="train_data returned labels that are text, such as 'benign'"):
        one_round(KerasTask(a_model, lambda _: a_stream(x, names)))


def test_a_step_whose_library_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    x, y = breast_cancer()

    with pytest.raises(TaskError, match=r"balance smote:5 needs imblearn, .* pip install 'fluffle\[data\]'"):
        a_task((x, y), DataSteps(balance="smote")).prepare(Site())


@needs_tensorflow
@pytest.mark.parametrize("balance", ["weights", "oversample", "smote", "balanced_softmax"])
def test_a_remedy_finds_more_of_the_rare_digits(balance: str) -> None:
    images, digits = load_digits(return_X_y=True)
    images, is_held_out = images / 16, np.arange(digits.size) % 3 == 0
    # The digits 5 to 9 have 5 examples each, and the others about 120.
    rank = np.array([(digits[:at] == digit)[~is_held_out[:at]].sum() for at, digit in enumerate(digits)])
    chosen = ~is_held_out & ((digits < 5) | (rank < 5))
    rare = is_held_out & (digits >= 5)
    found = []
    for name in ("none", balance):
        task = KerasTask(
            lambda: a_model(64, 10),
            lambda _: (images[chosen], digits[chosen]),
            lambda: (images[rare], digits[rare]),
            data=DataSteps(balance=name),
        )
        _, trained = one_round(task, Plan(local_epochs=20, batch_size=32))
        found.append(task.evaluate(trained.weights)["accuracy"])

    assert found[1] > found[0] + 0.05


def test_fashion_mnist_is_taken_through_the_steps() -> None:
    task = load_task("fashion_mnist")
    assert isinstance(task, KerasTask)
    task = task.with_data_steps(DataSteps(duplicates="drop", balance="undersample"))

    rows = task.prepare(Site(count=40))
    given = task.train_data(Site(count=40))

    assert isinstance(given, tuple)
    classes, counts = np.unique(given[1], return_counts=True)
    assert rows == counts.min() * classes.size < counts.sum()


def test_rows_that_are_held_out_are_cleaned_as_the_training_rows_say_and_evaluated() -> None:
    x, y = breast_cancer(missing=0.1)
    task = CheckedTask(a_task((x, y), DataSteps(outliers="mad:3", seed=4)))
    weights = task.model().weights
    rows = task.prepare(Site(validation=0.25))

    trained = task.train(weights, Plan(local_epochs=5), seed=0, progress=ignore_progress)

    assert rows == pytest.approx(0.75 * 569, abs=2)
    before, after = task.validate(weights), task.validate(trained.weights)
    assert before
    assert after
    assert before[0] + rows == 569
    values = [{each.name: each.value for each in metrics} for _, metrics in (before, after)]
    assert np.isfinite(list(values[0].values())).all()
    assert values[1]["accuracy"] > max(0.85, values[0]["accuracy"])
