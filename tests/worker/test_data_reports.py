"""What users of other libraries reported of rare classes, missing values, wrong labels and augmentation.

Each is tried on a site's data: it must train, or be refused with one sentence.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_iris

from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.task import Site, Trained
from fluffle_worker.data import DataSteps
from fluffle_worker.data.pipeline import PreparedRows, take_steps
from fluffle_worker.data.rows import read_rows
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.round import ignore_progress

Array = NDArray[Any]
X, Y = load_iris(return_X_y=True)
IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 8, 8, 1).astype(np.float32)[:101] / 16
DIGITS = DIGITS[:101]


def steps_on(*data: Any, **steps: Any) -> PreparedRows:
    return take_steps(read_rows(data), DataSteps(**steps), site=0)


def counts(prepared: PreparedRows) -> list[int]:
    return list(map(int, np.bincount(np.asarray(prepared.train.y).reshape(-1).astype(int))))


@pytest.mark.parametrize("balance", ["smote", "borderline_smote", "svm_smote", "adasyn"])
@pytest.mark.parametrize("few", [1, 2, 4])
def test_a_class_with_fewer_rows_than_neighbours_can_be_balanced(balance: str, few: int) -> None:
    """imbalanced-learn #27, #572 and #742: errors on neighbours, or on an array with 0 samples."""
    keep = (Y != 2) | (np.cumsum(Y == 2) <= few)

    assert counts(steps_on(X[keep], Y[keep], balance=balance)) == [50, 50, 50]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean"])
@pytest.mark.parametrize("balance", ["weights", "smote", "undersample"])
def test_labels_in_the_nullable_types_of_pandas_are_labels(dtype: str, balance: str) -> None:
    """imbalanced-learn #969: unknown label type."""
    y = pd.Series((Y == 0).astype(int)).astype(dtype)

    prepared = steps_on(pd.DataFrame(X), y, balance=balance)

    assert set(np.unique(np.asarray(prepared.train.y, float))) == {0.0, 1.0}
    assert np.isfinite(prepared.train.x).all()


def test_booleans_beside_categories_stay_what_they_are() -> None:
    """imbalanced-learn #974: booleans turned categories into floats."""
    kind = pd.Series(Y % 3, dtype="category")
    frame = pd.DataFrame({"kind": kind, "width": X[:, 1], "long": X[:, 0] > 5.8})

    made = steps_on(frame, (np.arange(150) % 5 == 0).astype(int), balance="smote").train.x[150:]

    assert len(made) == 90
    assert set(made[:, 0]) <= {0.0, 1.0, 2.0}
    assert set(made[:, 2]) <= {0.0, 1.0}


@pytest.mark.parametrize("impute", ["median", "mean", "most_frequent", "knn:3"])
def test_a_column_without_any_value_is_never_dropped(impute: str) -> None:
    """scikit-learn #16426, #18681 and #29355: imputers dropped it, and the shapes no longer fitted."""
    x = X.copy()
    x[:, 2] = np.nan

    prepared = steps_on(x, Y, impute=impute, indicator=True)

    assert prepared.train.x.shape == (150, 8)
    assert (prepared.train.x[:, 2] == 0).all()


def test_wrong_labels_are_looked_for_where_some_classes_have_no_rows_or_few() -> None:
    """cleanlab #41, #288 and #641: shapes that did not fit, and warnings for classes with few examples."""
    y = np.where(Y == 1, 7, Y)
    y[:2] = 12
    y[60] = 0

    prepared = steps_on(X, y, labels="drop")

    assert 120 < len(prepared.train) < 150
    assert (np.asarray(prepared.train.y) == 12).sum() == 2


def a_classifier(classes: int) -> KerasModel:
    keras = import_keras()
    layers = [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(classes, "softmax")])
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained(augment: str, seed: int, **data: Any) -> Trained:
    task = KerasTask(
        lambda: a_classifier(10),
        lambda _: (IMAGES, DIGITS.astype(np.int32), *data.values()),
        data=DataSteps(augment=(augment,), balance="weights"),
    )
    weights = task.initial_weights(0)
    task.prepare(Site())
    # The last minibatch of 101 images has a single one.
    return task.train(weights, Plan(local_epochs=1, batch_size=20), seed=seed, progress=ignore_progress)


@needs_tensorflow
@pytest.mark.parametrize("augment", ["mixup", "cutmix", "rand_augment", "erase"])
def test_labels_that_are_integers_a_single_image_and_weights_of_rows_can_be_augmented(augment: str) -> None:
    """keras-cv pull request #445 and BirdSet pull request #274: labels as integers, a minibatch of one."""
    ended = trained(augment, 3, sample_weight=np.linspace(0, 1, 101))

    assert all(np.isfinite(array).all() for array in ended.weights.values())


@needs_tensorflow
@pytest.mark.parametrize("augment", ["mixup", "rand_augment"])
def test_the_same_seed_augments_in_the_same_way_however_often_it_was_called_before(augment: str) -> None:
    """tensorflow #48665 and keras-cv #500: two runs with one seed gave different images."""
    first, other, again = (trained(augment, seed) for seed in (3, 4, 3))

    same = [np.array_equal(first.weights[name], again.weights[name]) for name in first.weights]
    assert all(same)
    assert not all(np.array_equal(first.weights[name], other.weights[name]) for name in first.weights)


def test_class_weights_reach_labels_that_are_one_hot_beside_weights_of_rows() -> None:
    """keras #2071 and #5536: class_weight ignored beside sample_weight, and no way for one-hot labels."""
    few = (Y == 0) & (np.arange(150) >= 10)
    own = np.linspace(0.5, 1.5, 150)[~few]

    weights = steps_on(X[~few], np.eye(3)[Y[~few]], own, balance="weights").train.weights

    assert weights is not None
    by_class = np.bincount(Y[~few], weights / own)
    assert by_class == pytest.approx(np.full(3, 110 / 3))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (slice(0, 100), "made no rows, since each class has 50"),
        (slice(49, 100), "drew rows of the classes 0 again, since none could be made"),
    ],
)
def test_the_report_on_smote_names_no_number_of_rows_where_it_made_none(rows: slice, said: str) -> None:
    prepared = steps_on(X[rows], Y[rows], balance="smote")

    assert prepared.reports[-1].detail == said


def test_an_augmentation_names_the_columns_with_categories() -> None:
    x = pd.DataFrame({"age": X[:, 0], "sex": pd.Categorical(Y)})
    task = KerasTask(lambda: a_classifier(3), lambda _: (x, Y), data=DataSteps(augment=("noise",)))

    with pytest.raises(TaskError, match="changes numbers, and there are categories in the columns 'sex'"):
        task.prepare(Site())
