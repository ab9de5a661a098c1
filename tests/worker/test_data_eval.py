"""Data steps on what a task holds out, and on inputs and outputs that are no single table."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_wine

from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_worker.data import DataSteps
from fluffle_worker.data.table import with_data_table
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.round import ignore_progress

Array = NDArray[Any]
X, Y = load_wine(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
HOLES = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)


def a_model(inputs: int = 13, outputs: int = 3) -> KerasModel:
    keras = import_keras()
    model = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(outputs, "softmax")])
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def evaluated(eval_data: object, steps: DataSteps, inputs: int = 13) -> dict[str, Any]:
    task = KerasTask(lambda: a_model(inputs), lambda _: (X, Y), lambda: eval_data, data=steps)
    return dict(task.evaluate(task.initial_weights(0)))


def stream(*parts: Any) -> Any:
    return importlib.import_module("tensorflow").data.Dataset.from_tensor_slices(parts).batch(50)


def test_missing_values_of_eval_data_are_filled_from_its_own_rows() -> None:
    found = evaluated((HOLES, Y), DataSteps(impute="mean"))

    filled = np.where(np.isnan(HOLES), np.nanmean(HOLES, axis=0), HOLES)
    plain = KerasTask(a_model, lambda _: (X, Y), lambda: (filled, Y))
    assert found == pytest.approx(plain.evaluate(plain.initial_weights(0)), abs=1e-6)


def test_eval_data_is_clipped_and_marked_as_the_training_rows_are_and_keeps_every_labelled_row() -> None:
    steps = DataSteps(outliers="mad:3", indicator=True, duplicates="drop", balance="undersample")
    gross, labels = HOLES.copy(), Y.astype(float)
    gross[0, 0], labels[1] = 1e9, np.nan

    found = evaluated((np.concatenate([gross, gross]), np.concatenate([labels, labels])), steps, inputs=26)

    assert np.isfinite(found["loss"])
    assert found["loss"] < 100
    # The share of 2 * 177 rows.
    assert found["accuracy"] * 177 == pytest.approx(round(found["accuracy"] * 177), abs=1e-4)


@pytest.mark.parametrize(
    ("eval_data", "steps", "says"),
    [
        ((HOLES, Y), DataSteps(impute="refuse"), r"values are missing .* fill them in eval_data"),
        ((HOLES * np.nan, Y), DataSteps(), "no value is there in any of the 178 rows of eval_data"),
        ((X[:9], Y), DataSteps(), r"eval_data must return arrays of one length, not of \[9, 178\]"),
        ((X, Y * np.nan), DataSteps(), "the data step labels left none of 178 rows"),
    ],
)
def test_eval_data_that_a_step_cannot_work_with_is_refused_by_name(
    eval_data: object, steps: DataSteps, says: str
) -> None:
    with pytest.raises(TaskError, match=says):
        evaluated(eval_data, steps)


@needs_tensorflow
@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (HOLES, DataSteps(), r"that eval_data returned holds \d+ missing or infinite values"),
        (X, DataSteps(outliers="mad"), "outliers mad need all rows at once, and eval_data returned"),
        (X, DataSteps(indicator=True), "indicator need all rows at once, and eval_data returned"),
    ],
)
def test_held_out_minibatches_that_would_need_a_step_are_refused(
    x: Array, steps: DataSteps, says: str
) -> None:
    with pytest.raises(TaskError, match=says):
        evaluated(stream(x, Y), steps)


@needs_tensorflow
def test_held_out_minibatches_are_evaluated_where_no_step_changes_columns() -> None:
    steps = DataSteps(balance="weights", augment=("noise",))

    assert evaluated(stream(X, Y), steps) == pytest.approx(evaluated((X, Y), steps), abs=1e-6)


def test_held_out_rows_that_would_all_be_dropped_are_refused() -> None:
    x = X.copy()
    # Each row of one column misses a value in turn: with this seed the held-out ones too.
    x[:, 0] = np.where(np.arange(178) < 170, np.nan, 1.0)
    task = KerasTask(a_model, lambda _: (x, Y), data=DataSteps(impute="drop"))

    with pytest.raises(TaskError, match=r"all \d rows that are held out have missing values"):
        task.prepare(Site(validation=0.01))


def test_an_evaluator_takes_its_steps_from_the_table_data(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[data]\nimpute = "refuse"\n', encoding="utf-8")
    task = KerasTask(a_model, lambda _: (X, Y), lambda: (HOLES, Y), data=DataSteps())

    with pytest.raises(TaskError, match="and impute is refuse"):
        with_data_table(task, tmp_path / "site.toml").evaluate(task.initial_weights(0))


@needs_tensorflow
def test_a_table_that_says_nothing_of_missing_values_suits_a_stream(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[data]\nbalance = "weights"\n', encoding="utf-8")
    task = KerasTask(a_model, lambda _: stream(X, Y))

    given = with_data_table(task, tmp_path / "site.toml")

    assert given.prepare(Site()) == 178


@needs_tensorflow
def test_texts_are_weighed_and_drawn_again_but_not_filled() -> None:
    texts = np.array(["good wine", "bad wine", "wine"], object)[Y]

    def reads_text() -> KerasModel:
        keras = import_keras()
        words = keras.layers.TextVectorization(max_tokens=10, output_mode="multi_hot")
        words.adapt(["good bad wine"])
        layers = [keras.Input((), dtype="string"), words, keras.layers.Dense(3, "softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    for balance in ("weights", "oversample"):
        task = KerasTask(reads_text, lambda _: (texts, Y), data=DataSteps(balance=balance))
        weights = task.initial_weights(0)
        task.prepare(Site(validation=0.2))
        trained = task.train(weights, Plan(local_epochs=30), seed=0, progress=ignore_progress)
        assert trained.metrics["accuracy"] > 0.9

    with pytest.raises(TaskError, match="smote:5 needs x as one array or data frame of numbers"):
        KerasTask(reads_text, lambda _: (texts, Y), data=DataSteps(balance="smote")).prepare(Site())


def test_several_outputs_lose_rows_without_a_target_and_cannot_be_balanced() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    targets = {"benign": y, "radius": np.where(np.arange(569) % 10 == 0, np.nan, x[:, 0])}

    def two_outputs() -> KerasModel:
        keras = import_keras()
        inputs = keras.Input((30,))
        hidden = keras.layers.Dense(4)(inputs)
        heads = {
            "benign": keras.layers.Dense(1, "sigmoid", name="benign")(hidden),
            "radius": keras.layers.Dense(1, name="radius")(hidden),
        }
        model = keras.Model(inputs, heads)
        losses = {"benign": "binary_crossentropy", "radius": "mse"}
        model.compile(keras.optimizers.SGD(1e-9), loss=losses)
        return model

    task = KerasTask(
        two_outputs, lambda _: (x, targets), data=DataSteps(duplicates="drop", augment=("mixup",))
    )
    weights = task.initial_weights(0)

    assert task.prepare(Site()) == 512
    trained = task.train(weights, Plan(local_epochs=1), seed=0, progress=ignore_progress)
    assert np.isfinite(trained.metrics["loss"])

    with pytest.raises(TaskError, match=r"weights needs a class for each row .* y holds a dict of arrays"):
        KerasTask(two_outputs, lambda _: (x, targets), data=DataSteps(balance="weights")).prepare(Site())


def test_a_text_column_of_a_data_frame_is_refused_by_its_name() -> None:
    frame = pd.DataFrame({"age": [1.0, 2.0], "city": ["Rome", "Oslo"]})

    with pytest.raises(TaskError, match="the column 'city' holds str such as 'Rome' where"):
        KerasTask(a_model, lambda _: (frame, [0, 1]), data=DataSteps()).prepare(Site())
