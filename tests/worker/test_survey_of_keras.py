"""What a KerasTask answers to a survey, and what its layers and losses make of the result."""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf
from features.feature import needs_tensorflow
from sklearn.datasets import load_breast_cancer, load_wine

from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.survey import DataStatistics, SurveyResult, statistics_of
from fluffle.survey.result import result_of
from fluffle.task import Site
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasTask, SurveyNormalization
from fluffle_worker.round import ignore_progress

CLASSES = 3


def build_model(columns: int = 13, classes: int = CLASSES) -> keras.Model:
    layers = [keras.Input((columns,)), SurveyNormalization(), keras.layers.Dense(classes, "softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def wines() -> tuple[Any, Any]:
    frame = load_wine(as_frame=True)
    return frame.data, frame.target


def surveyed(data: object, *, site: Site | None = None, steps: DataSteps | None = None) -> DataStatistics:
    task = KerasTask(build_model, lambda _: data, data=steps)
    task.prepare(site or Site())
    return task.statistics()


def published(statistics: DataStatistics) -> SurveyResult:
    return result_of(statistics, sites=1, min_count=1)


def as_frame(x: Any, y: Any) -> object:
    return x, y


def as_arrays(x: Any, y: Any) -> object:
    return x.to_numpy(), y.to_numpy()


def as_one_hot(x: Any, y: Any) -> object:
    return x.to_numpy(np.float32), np.eye(CLASSES)[y]


def as_sparse(x: Any, y: Any) -> object:
    return scipy.sparse.csr_matrix(x.to_numpy()), y.to_numpy()


def as_data_set(x: Any, y: Any) -> object:
    return tf.data.Dataset.from_tensor_slices((x.to_numpy(), y.to_numpy())).batch(50)


@pytest.mark.parametrize("form", [as_frame, as_arrays, as_one_hot, as_sparse, as_data_set])
def test_wines_are_surveyed_in_every_form_that_a_task_may_return(form: Any) -> None:
    x, y = wines()

    found = published(surveyed(form(x, y)))

    assert found.rows == len(x)
    assert found.names == (tuple(x.columns) if form is as_frame else tuple(map(str, range(13))))
    assert found.class_counts == tuple(np.bincount(y))
    np.testing.assert_allclose(found.mean, x.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, x.std(ddof=0), rtol=1e-6)


def test_rows_are_surveyed_after_cleaning_and_before_rows_are_drawn_and_filled_values_are_missing() -> None:
    x, y = wines()
    x = x.mask(np.random.default_rng(0).random(x.shape) < 0.1)
    x.iloc[0, 0] = np.inf
    steps = DataSteps(duplicates="drop", balance="oversample")
    twice = pd.concat([x, x]), pd.concat([y, y])

    found = published(surveyed(twice, steps=steps))

    assert found.rows == len(x)
    assert found.class_counts == tuple(np.bincount(y))
    finite = x.replace(np.inf, np.nan)
    assert [each.missing for each in found.columns] == finite.isna().sum().tolist()
    np.testing.assert_allclose(found.mean, finite.mean(), rtol=1e-9)


@pytest.mark.parametrize("steps", [None, DataSteps()])
def test_texts_alone_cannot_be_surveyed(steps: DataSteps | None) -> None:
    task = KerasTask(build_model, lambda _: (np.array(["good", "bad"]), np.array([0, 1])), data=steps)

    with pytest.raises(TaskError, match="a survey needs inputs that are numbers"):
        task.statistics()


@pytest.mark.parametrize("steps", [None, DataSteps()])
def test_rows_that_are_held_out_are_not_surveyed(steps: DataSteps | None) -> None:
    x, y = (each.to_numpy() for each in wines())
    task = KerasTask(build_model, lambda _: (x, y), data=steps)

    trained_on = task.prepare(Site(validation=0.25, seed=3))

    assert task.statistics().rows == trained_on < len(x)


@needs_tensorflow
@pytest.mark.parametrize("steps", [None, DataSteps()])
def test_inputs_by_name_are_surveyed_as_one_and_text_is_left_out(steps: DataSteps | None) -> None:
    x, y = load_breast_cancer(return_X_y=True)

    def build() -> keras.Model:
        size, shape = keras.Input((1,), name="size"), keras.Input((2,), name="shape")
        note = keras.Input((1,), dtype="string", name="note")
        scaled = [SurveyNormalization(of="size")(size), SurveyNormalization(of="shape")(shape)]
        hashed = keras.layers.Hashing(4, output_mode="one_hot")(note)
        merged = keras.layers.Concatenate()([*scaled, hashed])
        model = keras.Model(
            {"size": size, "shape": shape, "note": note}, keras.layers.Dense(1, "sigmoid")(merged)
        )
        model.compile("sgd", "binary_crossentropy")
        return model

    data = {"size": x[:, 0], "shape": x[:, 1:3], "note": np.full((len(x), 1), "a")}
    task = KerasTask(build, lambda _: (data, y), data=steps)
    task.prepare(Site())

    found = published(task.statistics())

    assert found.names == ("size", "shape/0", "shape/1")
    assert found.class_counts == tuple(np.bincount(y))
    names = [name for name in task.initial_weights(0) if "survey" in name]
    assert [name.rpartition("/")[2] for name in names] == [
        *("survey_mean.size", "survey_deviation.size", "survey_mean.shape", "survey_deviation.shape")
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((np.ones((9, 5)), np.zeros(9, int)), "scales 13 columns, and train_data has 5"),
        ((np.ones((9, 13)), np.full(9, 7)), "the label 7"),
        ((pd.DataFrame({"a": ["x"] * 9}), np.zeros(9, int)), "the column 'a' holds str such as 'x'"),
        ((np.ones((9, 2000)), np.zeros(9, int)), "1 to 1024 columns"),
        (
            (np.full((9, 13), 1e300), np.zeros(9, int)),
            "values in the column '0' that are too large for float32",
        ),
    ],
)
def test_data_that_cannot_be_surveyed_is_refused_with_a_sentence(data: object, says: str) -> None:
    task = KerasTask(build_model, lambda _: data, data=DataSteps())

    with pytest.raises(TaskError, match=says):
        task.statistics()


def test_the_layer_scales_as_the_survey_says_and_training_and_files_keep_its_statistics(
    tmp_path: Path,
) -> None:
    x, y = (each.to_numpy() for each in wines())
    task = KerasTask(build_model, lambda _: (x, y), lambda: (x, y))
    weights = task.initial_weights(0)
    layer = "survey_normalization/survey_"
    assert {task.tensor_groups()[f"{layer}{each}"] for each in ("mean", "deviation")} == {"statistic"}
    weights[f"{layer}mean"] = x.mean(axis=0).astype(np.float32)
    weights[f"{layer}deviation"] = x.std(axis=0).astype(np.float32)
    task.prepare(Site(statistics=published(statistics_of(x))))

    trained = task.train(weights, Plan(local_epochs=20), seed=0, progress=ignore_progress)

    for each in ("mean", "deviation"):
        assert trained.weights[f"{layer}{each}"].tobytes() == weights[f"{layer}{each}"].tobytes()
    assert task.evaluate(trained.weights)["accuracy"] > 0.95
    task.save(trained.weights, tmp_path / "wines.keras")
    loaded = keras.models.load_model(tmp_path / "wines.keras")
    np.testing.assert_allclose(loaded.layers[0](x), (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-3)
    assert task.load(tmp_path / "wines.keras").keys() == weights.keys()


def test_in_half_precision_large_values_are_scaled_before_they_are_rounded() -> None:
    layer = SurveyNormalization(dtype="mixed_float16")
    layer.build((None, 1))
    layer.mean.assign([2e5])
    layer.deviation.assign([1e5])

    scaled = layer(np.array([[3e5]], np.float32))

    assert (scaled.dtype, float(scaled[0, 0])) == (tf.float16, 1.0)


def test_without_a_survey_the_layer_changes_nothing_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x, y = (each.to_numpy() for each in wines())
    task = KerasTask(build_model, lambda _: (x, y))
    weights = task.initial_weights(0)
    task.prepare(Site())

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            task.train(weights, Plan(local_steps=1), seed=0, progress=ignore_progress)

    assert caplog.text.count("a layer changes nothing, since this federation has no survey") == 1


def test_held_out_data_that_asks_for_the_statistics_gets_them() -> None:
    x, y = (each.to_numpy() for each in wines())
    result, seen = published(statistics_of(x)), list[SurveyResult | None]()

    def eval_data(statistics: SurveyResult | None) -> object:
        seen.append(statistics)
        return x, y

    task = KerasTask(build_model, lambda _: (x, y), eval_data)
    weights = task.initial_weights(0)
    task.evaluate(weights)
    task.use_statistics(result)
    task.evaluate(weights)
    task.evaluate(weights)

    assert seen == [None, result]


@needs_tensorflow
def test_logit_adjustment_takes_the_classes_of_all_sites_and_says_what_it_needs() -> None:
    x, y = (each.to_numpy() for each in wines())
    steps = DataSteps(balance="logit_adjustment")
    task = KerasTask(build_model, lambda _: (x[y < 2], y[y < 2]), data=steps)
    weights = task.initial_weights(0)
    task.prepare(Site())
    with pytest.raises(TaskError, match=r"needs the classes of all sites.*--survey WORKERS"):
        task.train(weights, Plan(local_steps=1), seed=0, progress=ignore_progress)

    # No site has class 2.
    counted = statistics_of(x, np.repeat([0, 1], [150, 28]), classes=CLASSES)
    task.prepare(Site(statistics=published(counted)))
    trained = task.train(weights, Plan(local_steps=1), seed=0, progress=ignore_progress)

    assert np.isfinite(trained.metrics["loss"])
    kernel, before = trained.weights["dense/kernel"], weights["dense/kernel"]
    # Its logit takes no part.
    np.testing.assert_array_equal(kernel[:, 2], before[:, 2])
    assert (kernel[:, :2] != before[:, :2]).any()
