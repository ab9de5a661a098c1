"""Data sets in files as the training data of a KerasTask: arrays that data steps clean, and minibatches."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_worker.data import DataSteps, open_dataset
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.round import ignore_progress

ROWS = 400
SITE = Site(index=1, count=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of rows that are 1 where the first column is above 0; some values are missing."""
    rng = np.random.default_rng(0)
    for file in range(4):
        x = rng.standard_normal((ROWS // 4, 3)).astype(np.float32)
        columns = {f"c{at}": pa.array(x[:, at], mask=rng.random(len(x)) < 0.05 * at) for at in range(3)}
        table = pa.table({**columns, "y": (x[:, 0] > 0).astype(np.int32)})
        pq.write_table(table, tmp_path / f"part-{file}.parquet", row_group_size=30)
    return tmp_path


def build_model() -> KerasModel:
    keras = import_keras()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained_accuracy(task: KerasTask) -> float:
    weights = task.initial_weights(0)
    trained = task.train(weights, Plan(local_epochs=3), seed=0, progress=ignore_progress)
    assert trained.examples == ROWS // 2
    return trained.metrics["accuracy"]


def test_arrays_go_through_the_data_steps(folder: Path) -> None:
    task = KerasTask(
        build_model, lambda site: open_dataset(folder, label="y", shard=site).arrays(), data=DataSteps()
    )

    assert task.prepare(SITE) == ROWS // 2
    assert trained_accuracy(task) > 0.8


def test_minibatches_are_read_again_in_each_epoch(folder: Path) -> None:
    def train_data(site: Site) -> object:
        return open_dataset(folder, columns=["c0"], label="y", shard=site).minibatches(32, shuffle_seed=0)

    def of_one_column() -> KerasModel:
        keras = import_keras()
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "softmax")])
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    task = KerasTask(of_one_column, train_data, data=DataSteps(balance="weights"))

    assert task.prepare(SITE) == ROWS // 2
    assert trained_accuracy(task) > 0.8


def test_missing_values_in_minibatches_are_told_before_the_first_round(folder: Path) -> None:
    task = KerasTask(build_model, lambda _: open_dataset(folder, label="y").minibatches(32), data=DataSteps())

    with pytest.raises(TaskError, match=r"holds \d+ missing or infinite values, .* or return arrays"):
        task.prepare(SITE)


def test_a_file_that_changes_during_training_ends_the_round_with_its_name(folder: Path) -> None:
    task = KerasTask(build_model, lambda _: open_dataset(folder, label="y").minibatches(32))
    task.prepare(SITE)
    (folder / "part-2.parquet").write_bytes((folder / "part-1.parquet").read_bytes()[:-1] + b"2")

    with pytest.raises(TaskError, match=r"/part-2.parquet has changed since the task began"):
        trained_accuracy(task)
