"""What a KerasTask measures at its sites: over all of them the same as on their data in one place."""

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.metrics import mean_absolute_error, precision_score, recall_score, root_mean_squared_error
from working import CountingTask

from fluffle.checked_task import CheckedTask
from fluffle.errors import TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.sites import SiteReport, over_sites
from fluffle.task import MeanOf, Site, Validated
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.keras_task.data import ArrayData
from fluffle_worker.round import ignore_progress

Array = NDArray[Any]
SITES = 4
# Of unequal size.
CUTS = (0.1, 0.3, 0.6)


def parts_of(*arrays: Array) -> list[tuple[Array, ...]]:
    """Cut rows into the parts of four sites."""
    ends = [int(cut * len(arrays[0])) for cut in CUTS]
    return list(zip(*(np.split(array, ends) for array in arrays), strict=True))


def measured(task: KerasTask, weights: Weights, sites: int = SITES, share: float = 0.25) -> Any:
    """Return what all sites measure of the same weights, over all of them."""
    reports = {}
    for index in range(sites):
        checked = CheckedTask(task)
        checked.prepare(Site(index=index, count=sites, validation=share))
        found = checked.validate(weights)
        assert found is not None
        reports[f"s{index}"] = SiteReport(1, 1, *found)
    return over_sites(reports)


def given(data: Any, _site: Site) -> Any:
    """Return the same data at each site."""
    return data


def held_by(task: KerasTask) -> ArrayData:
    """Return what the site holds out that a task was prepared for."""
    assert task._site is not None
    assert isinstance(task._site.held_out, ArrayData)
    return task._site.held_out


def held_out(task: KerasTask, parts: int = SITES, share: float = 0.25) -> tuple[Any, ...]:
    """Return the held-out data of all sites in one place."""
    found = []
    for index in range(parts):
        task.prepare(Site(index=index, count=parts, validation=share))
        found.append(held_by(task).parts)
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))


def trained(task: KerasTask, epochs: int = 3) -> Weights:
    """Return weights that a site has trained a little."""
    weights = task.initial_weights(0)
    task.prepare(Site(index=SITES - 1, count=SITES))
    return task.train(weights, Plan(local_epochs=epochs), seed=0, progress=ignore_progress).weights


def a_regression() -> KerasModel:
    keras = import_keras()
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae", keras.metrics.RootMeanSquaredError(), "r2_score"])
    return model


def test_the_errors_of_a_regression_over_all_sites_are_those_of_their_data_in_one_place() -> None:
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    frames = [(x.iloc[at::SITES], y.iloc[at::SITES]) for at in range(SITES)]
    task = KerasTask(a_regression, lambda site: frames[site.index])
    weights = trained(task)
    found = measured(task, weights)
    inputs, targets = held_out(task)
    predicted = task._model().model.predict(inputs, verbose=0).reshape(-1)

    assert found["mae"].pooling == "mean"
    assert found["mae"].mean == pytest.approx(mean_absolute_error(targets, predicted), rel=1e-6)
    assert found["root_mean_squared_error"].pooling == "root_mean"
    rmse = root_mean_squared_error(targets, predicted)
    assert found["root_mean_squared_error"].mean == pytest.approx(rmse, rel=1e-6)
    assert found["loss"].mean == pytest.approx(rmse**2, rel=1e-5)
    assert found["r2_score"].pooling == "site_mean"


def a_classifier() -> KerasModel:
    keras = import_keras()
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(1, "sigmoid")])
    metrics = [
        *("accuracy", keras.metrics.Precision(), keras.metrics.Recall(), keras.metrics.AUC(name="auc")),
        keras.metrics.F1Score(name="f1", threshold=0.5),
        keras.metrics.Recall(name="recall_of_many", thresholds=[0.2, 0.8]),
    ]
    model.compile("adam", "binary_crossentropy", metrics=metrics)
    return model


def test_precision_and_recall_are_summed_up_and_what_cannot_be_is_marked() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    parts = parts_of((x - x.mean(axis=0)) / x.std(axis=0), y.astype(np.float32)[:, None])
    task = KerasTask(a_classifier, lambda site: parts[site.index])
    weights = trained(task)
    found = measured(task, weights)
    inputs, labels = held_out(task)
    predicted = task._model().model.predict(inputs, verbose=0) > 0.5

    assert found["precision"].mean == pytest.approx(precision_score(labels, predicted), abs=1e-6)
    assert found["recall"].mean == pytest.approx(recall_score(labels, predicted), abs=1e-6)
    assert found["accuracy"].mean == pytest.approx(float((predicted == labels).mean()), abs=1e-6)
    poolings = {name: each.pooling for name, each in found.items()}
    assert {name for name, pooling in poolings.items() if pooling == "site_mean"} == {
        *("auc", "f1/0", "recall_of_many/0", "recall_of_many/1")
    }


def two_outputs() -> KerasModel:
    keras = import_keras()
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(16, "relu")(inputs)
    digit = keras.layers.Dense(10, "softmax", name="digit")(hidden)
    odd = keras.layers.Dense(1, "sigmoid", name="odd")(hidden)
    model = keras.Model(inputs, {"digit": digit, "odd": odd})
    losses = {"digit": "sparse_categorical_crossentropy", "odd": "binary_crossentropy"}
    model.compile("adam", losses, metrics={"digit": ["accuracy"], "odd": ["accuracy", "mae"]})
    return model


def test_each_output_of_a_model_has_metrics_of_its_own() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rows = np.array_split(np.random.default_rng(0).permutation(len(x)), SITES)

    def train_data(site: Site) -> Any:
        mine = rows[site.index]
        return x[mine], {"digit": y[mine], "odd": (y[mine] % 2).astype(np.float32)[:, None]}

    task = KerasTask(two_outputs, train_data)
    found = measured(task, trained(task))

    assert {name: each.pooling for name, each in found.items() if each.pooling != "mean"} == {}
    assert {"digit_accuracy", "odd_accuracy", "odd_mae", "loss"} <= found.keys()
    assert found["digit_accuracy"].mean > 0.2


def test_rows_that_weigh_more_count_more() -> None:
    keras = import_keras()
    rng = np.random.default_rng(3)
    x, y = rng.random((200, 3)).astype(np.float32), rng.integers(0, 2, 200)
    weights = rng.random(200).astype(np.float32) * 5
    parts = parts_of(x, y, weights)

    def build() -> KerasModel:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
        return model

    task = KerasTask(build, lambda site: parts[site.index])
    tensors = task.initial_weights(1)
    found = measured(task, tensors)
    inputs, labels, of_rows = held_out(task)
    right = task._model().model.predict(inputs, verbose=0).argmax(axis=1) == labels

    assert found["accuracy"].mean == pytest.approx(float(np.average(right, weights=of_rows)), rel=1e-5)
    assert found["accuracy"].pooling == "mean"


def test_the_same_rows_are_held_out_each_time_in_the_proportions_of_the_classes() -> None:
    x, y = load_digits(return_X_y=True)
    task = KerasTask(two_outputs, lambda _site: (x, y))
    labels = []
    for _ in range(2):
        rows = task.prepare(Site(index=2, count=4, validation=0.2))
        labels.append(np.asarray(held_by(task).parts[1]))

    assert np.array_equal(labels[0], labels[1])
    assert np.abs(np.bincount(labels[0]) - 0.2 * np.bincount(y)).max() <= 1
    assert rows + len(labels[0]) == len(y)


@needs_tensorflow
def test_text_labels_and_labels_below_zero_are_held_out_in_their_proportions_too() -> None:
    words = np.array(["yes", "no", "no", "no"] * 50)
    signs = np.array([1, -1, -1, -1] * 50)

    for y, few in ((words, "yes"), (signs, 1)):
        data = np.ones((200, 3)), y
        task = KerasTask(two_outputs, partial(given, data))
        task.prepare(Site(validation=0.2))
        held = np.asarray(held_by(task).parts[1])
        assert (int((held == few).sum()), len(held)) == (10, 40)


@needs_tensorflow
def test_validation_data_may_be_a_data_set_and_goes_through_no_step_that_needs_all_rows() -> None:
    tf = importlib.import_module("tensorflow")
    x, y = load_breast_cancer(return_X_y=True)
    x, y = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), y.astype(np.float32)[:, None]
    own = tf.data.Dataset.from_tensor_slices((x[:100], y[:100])).batch(32)
    task = CheckedTask(KerasTask(a_classifier, lambda _: (x[100:], y[100:]), validation_data=lambda _: own))
    weights = task.model().weights
    task.prepare(Site())

    found = task.validate(weights)

    assert found is not None
    assert found[0] == 100


def test_validation_data_gets_the_filling_that_was_fitted_on_the_training_rows() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = (x - x.mean(axis=0)) / x.std(axis=0), y.astype(np.float32)[:, None]
    x[::7, 3] = np.nan
    steps = DataSteps(impute="median")
    task = KerasTask(
        a_classifier, lambda _: (x[100:], y[100:]), validation_data=lambda _: (x[:100], y[:100]), data=steps
    )
    task.prepare(Site())

    held = np.asarray(held_by(task).parts[0])
    filled = held[np.isnan(x[:100, 3]), 3]
    assert np.allclose(filled, np.nanmedian(x[100:, 3]))


@pytest.mark.parametrize("steps", [None, DataSteps()])
def test_a_survey_knows_nothing_of_the_rows_that_are_held_out(steps: DataSteps | None) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = x / x.max(axis=0)
    task = KerasTask(a_classifier, lambda _: (x, y.astype(np.float32)[:, None]), data=steps)
    rows = task.prepare(Site(index=1, count=2, validation=0.25))
    assert task._site is not None
    assert isinstance(task._site.training, ArrayData)

    found = task.statistics()

    labels = np.asarray(task._site.training.parts[1]).reshape(-1)
    assert found.rows == rows == len(x) - held_by(task).examples
    assert found.classes == tuple(np.bincount(labels.astype(int)))


@pytest.mark.parametrize(
    ("task", "site", "sentence"),
    [
        (
            KerasTask(
                a_classifier, lambda _: (np.ones((9, 30)), np.ones((9, 1))), validation_data=lambda _: ()
            ),
            Site(validation=0.2),
            "local_validation 0.2 holds out a part of train_data, and the task has validation_data",
        ),
        (
            KerasTask(a_classifier, lambda _: [(np.ones((9, 30)), np.ones((9, 1)))].__iter__),
            Site(validation=0.2),
            "train_data returned",
        ),
        (
            KerasTask(a_classifier, lambda _: (np.ones((1, 30)), np.ones((1, 1)))),
            Site(validation=0.2),
            "local_validation 0.2 of 1 rows holds out",
        ),
    ],
)
def test_what_cannot_be_held_out_is_refused(task: KerasTask, site: Site, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        task.prepare(site)


@needs_tensorflow
def test_a_share_of_a_data_set_that_comes_in_minibatches_is_refused_with_what_to_do() -> None:
    tf = importlib.import_module("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((np.ones((8, 30)), np.ones((8, 1)))).batch(4)

    with pytest.raises(TaskError, match="needs all rows at once, and train_data returned a data set"):
        KerasTask(a_classifier, lambda _: data).prepare(Site(validation=0.5))


def as_any(value: Any) -> Any:
    """Return what a task without types may return."""
    return value


class Own(CountingTask):
    """A task that measures what a test says."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def validate(self, _weights: Weights) -> Any:
        """See ValidatingTask."""
        return self.found


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"accuracy": 0.5}, "must return a fluffle.task.Validated or None, not dict"),
        (Validated(0, {"accuracy": 0.5}), "number of examples as an int of at least 1, not 0"),
        (Validated(5, {}), "a dictionary with one or more"),
        (
            Validated(5, as_any({"accuracy": "good"})),
            "'accuracy' must be a number, a vector of numbers or a MeanOf",
        ),
        (Validated(5, {"a": MeanOf(np.ones(2), 5)}), r"total of shape \(2,\) and a count of shape \(\)"),
        (Validated(5, {"a": MeanOf(1, -1)}), "the count of the metric 'a' must be at least 0"),
        (Validated(5, {"a" * 58: 0.5}), "has 1 to 57 printable characters"),
        (Validated(5, {"f1": np.ones(65)}), "65 metrics, and a site can send at most 64"),
    ],
)
def test_what_an_own_task_measures_wrongly_is_said(found: Any, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        CheckedTask(Own(found)).validate({})


def test_what_an_own_task_measures_is_taken_as_it_is() -> None:
    recall = MeanOf(np.array([3, 0]), np.array([4, 0]))
    metrics: Mapping[str, Any] = {"recall": recall, "auc": 0.75, "rmse": MeanOf(8.0, 2, is_root=True)}

    found = CheckedTask(Own(Validated(4, metrics))).validate({})

    assert found is not None
    by_name = {each.name: each for each in found[1]}
    assert [by_name[name].value for name in ("recall/0", "auc", "rmse")] == [0.75, 0.75, 2.0]
    assert by_name["recall/1"].count == 0
    assert by_name["auc"].pooling == "site_mean"
