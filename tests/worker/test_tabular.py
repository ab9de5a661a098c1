"""The task tabular on real tables: which model it makes, which rows it reads, and what it refuses."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from tables import HELD_OUT, LABEL, SITES, table_of, write_tables

from fluffle.checked_task import CheckedTask
from fluffle.data_source import DataSource, reading_from
from fluffle.errors import ConfigError, FluffleError, NoHeldOutData, TaskError
from fluffle.plan import Plan
from fluffle.task import Site, load_task
from fluffle_worker.data import DataSteps
from fluffle_worker.data.named import NamedTable
from fluffle_worker.round import ignore_progress
from fluffle_worker.tabular.task import TabularTask


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tabular(data: str | None = None, label: str | None = None, toml: str = "") -> TabularTask:
    """The ready task with these flags, and this table [tabular]."""
    config = Path("own.toml")
    config.write_text(f"[tabular]\n{toml}" if toml else "", encoding="utf-8")
    task = reading_from(load_task("tabular"), DataSource(data, label, config))
    assert isinstance(task, TabularTask)
    return task


def of_site(data: str, beginning: TabularTask, toml: str = "") -> TabularTask:
    """A worker's task in the federation that another one begins."""
    task = tabular(data, LABEL, toml).with_table_model(beginning.table_model())
    assert isinstance(task, TabularTask)
    return task


def rows_of(task: TabularTask) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The inputs and labels that a task trains on."""
    rows = task.train_data(Site())
    assert isinstance(rows, tuple)
    x, y = rows
    return x.to_numpy(), y


def a_round(task: TabularTask, site: Site) -> Mapping[str, float]:
    """Train a round as a worker does; the weights must be finite."""
    checked = CheckedTask(task)
    model = checked.model(0)
    checked.prepare(site)
    trained = checked.train(model.weights, Plan(local_epochs=3), seed=0, progress=ignore_progress)
    assert all(np.isfinite(each).all() for each in trained.weights.values())
    return trained.metrics


@pytest.mark.parametrize("name", ["tumours", "wines", "diabetes"])
@pytest.mark.parametrize("data", SITES)
def test_each_site_trains_a_round_whatever_its_files_are_like(
    name: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tables(name, tmp_path)
    task = of_site(data, tabular(HELD_OUT, LABEL))

    with caplog.at_level(logging.INFO):
        metrics = a_round(task, Site(validation=0.2))

    assert np.isfinite(metrics["loss"])
    assert ("impute median" in caplog.text) == (data != "site-0")
    assert ("columns are left out" in caplog.text and "'ward'" in caplog.text) == (data == "site-1")
    lacks_a_class = data == "site-2.csv" and name != "diabetes"
    assert ("no row here has one of these classes" in caplog.text) == lacks_a_class


def test_columns_are_found_by_their_names_in_whatever_order_they_lie(tmp_path: Path) -> None:
    frame = table_of("tumours")
    frame.to_parquet("in-order.parquet", index=False)
    shuffled = frame[frame.columns[np.random.default_rng(0).permutation(len(frame.columns))]]
    shuffled.to_parquet("shuffled.parquet", index=False)
    frame.to_csv("rows.csv", index=False)
    beginning = tabular("in-order.parquet", LABEL)

    found = [
        rows_of(of_site(data, beginning)) for data in ("in-order.parquet", "shuffled.parquet", "rows.csv")
    ]

    for x, y in found:
        np.testing.assert_array_equal(x, frame.drop(columns=LABEL).to_numpy(np.float32))
        np.testing.assert_array_equal(y, frame[LABEL] == "malignant")


def test_a_site_that_lacks_a_class_counts_all_of_them_in_the_survey(tmp_path: Path) -> None:
    write_tables("wines", tmp_path)
    task = of_site("site-2.csv", tabular(HELD_OUT, LABEL))
    checked = CheckedTask(task)
    checked.model(0)
    checked.prepare(Site())

    found = checked.statistics()

    assert found.names == task.table_model().columns
    assert found.classes is not None
    assert [count > 0 for count in found.classes] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda frame: frame.rename(columns={"alcohol": "Alcohol"}),
            r"lacks 'alcohol' of the 13 columns that the federation's model takes \(is it 'Alcohol' the",
        ),
        (lambda frame: frame.drop(columns=["hue", "ash"]), "lacks 'ash', 'hue' of the 13 columns"),
        (lambda frame: frame.drop(columns=LABEL), "has no column 'outcome', the label of the federation's"),
        (
            lambda frame: frame.assign(outcome=frame[LABEL].replace("class_1", "klass_1")),
            r"'klass_1' in 71 rows \(did you mean 'class_1'\?\)",
        ),
        (lambda frame: frame.assign(hue="red"), "'hue'.*numbers"),
        (lambda frame: frame.assign(hue=np.nan), r"no value is there in any of the 178 rows.*'hue'"),
        (lambda frame: frame[:0], "has no row"),
    ],
    ids=["renamed", "two missing", "no label", "misspelt", "text", "empty column", "no rows"],
)
def test_rows_that_the_model_cannot_take_are_refused_in_one_sentence(
    change: object, said: str, tmp_path: Path
) -> None:
    assert callable(change)
    write_tables("wines", tmp_path)
    change(table_of("wines")).to_parquet("site.parquet", index=False)
    task = of_site("site.parquet", tabular(HELD_OUT, LABEL))

    with pytest.raises(FluffleError) as refused:
        CheckedTask(task).prepare(Site())

    assert re.search(said, str(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            "hidden = [5]",
            r"hidden in \[tabular\] is \(5,\), and the federation's model has \[64, 32\]: leave it",
        ),
        ('columns = ["hue"]', r"columns in \[tabular\] is .* and the federation's model has"),
        ('leave_out = ["hue"]', "leave_out in .* 'hue', which the federation's model takes"),
        ('target = "number"', 'target in .* is "number", and the federation.s model tells 3 classes'),
        ('classes = ["a", "b"]', "classes in .* and the federation's model has"),
    ],
)
def test_settings_of_a_worker_that_the_model_does_not_follow_are_refused(
    toml: str, said: str, tmp_path: Path
) -> None:
    write_tables("wines", tmp_path)
    beginning = tabular(HELD_OUT, LABEL)
    table = beginning.table_model()

    with pytest.raises(TaskError, match=said):
        tabular("site-0", LABEL, toml).with_table_model(table)


def test_settings_of_a_worker_that_agree_and_another_label_are_told_apart(tmp_path: Path) -> None:
    write_tables("wines", tmp_path)
    table = tabular(HELD_OUT, LABEL).table_model()
    agreeing = f'columns = {list(reversed(table.columns))}\nhidden = [64, 32]\ntarget = "classes"'.replace(
        "'", '"'
    )

    assert tabular("site-0", None, agreeing).with_table_model(table).table_model() == table
    with pytest.raises(TaskError, match="--label is 'hue', and the federation's model tells 'outcome'"):
        tabular("site-0", "hue").with_table_model(table)


def test_without_rows_the_settings_say_it_all() -> None:
    found = tabular(None, "ill", 'columns = ["age", "bmi"]\nclasses = [0, 1]\nhidden = []').table_model()
    number = tabular(
        None, "months", 'columns = ["age"]\ntarget = "number"\ncenter = 20\nscale = 3'
    ).table_model()

    assert (found.columns, found.classes, found.hidden) == (("age", "bmi"), ("0", "1"), ())
    assert (number.classes, number.center, number.scale) == (None, 20.0, 3.0)


@pytest.mark.parametrize(
    ("data", "label", "toml", "said"),
    [
        (None, None, "", "nothing says which column the model tells: give --label COLUMN"),
        (HELD_OUT, None, "", "give --label COLUMN: the columns are 'alcohol', 'malic_acid'"),
        (HELD_OUT, "result", "", "has no column 'result': its columns are 'alcohol'"),
        (None, LABEL, "", "nothing says which columns the model takes"),
        (None, LABEL, 'columns = ["age"]', "nothing says what the label 'outcome' is"),
        (HELD_OUT, LABEL, 'columns = ["age"]', r"\[tabular\] names 'age', and .* has no such column"),
        (HELD_OUT, LABEL, 'columns = ["hue", "hue"]', "'hue' is named more than once"),
        (HELD_OUT, LABEL, f'columns = ["{LABEL}"]', "names the label 'outcome': the model cannot take what"),
        (
            HELD_OUT,
            LABEL,
            'target = "number"',
            r"'outcome' holds text such as 'class_0', and \[tabular\] says",
        ),
        (HELD_OUT, "hue", f'target = "classes"\nleave_out = ["{LABEL}"]', "numbers that are not whole"),
        ("text.parquet", LABEL, "", "the column 'sex' of text.parquet holds text.*leave_out"),
        ("index.csv", LABEL, "", "a column of index.csv has no name, as where pandas writes its index"),
        ("one.parquet", LABEL, "", "all labels 'outcome' of the data are 'class_0'"),
        ("odd.parquet", "day", "", "the label 'day' of odd.parquet holds timestamp.*name another column"),
        (
            "odd.parquet",
            LABEL,
            'leave_out = ["day"]',
            "the name 'xxx.* cannot be used: it must have 1 to 100",
        ),
    ],
)
def test_a_model_that_nobody_has_described_is_refused_in_one_sentence(
    data: str | None, label: str | None, toml: str, said: str, tmp_path: Path
) -> None:
    whole = write_tables("wines", tmp_path)
    whole.assign(sex="f").to_parquet("text.parquet", index=False)
    whole[whole[LABEL] == "class_0"].to_parquet("one.parquet", index=False)
    odd = whole[["hue", LABEL]].assign(day=pd.Timestamp("2024-01-01")).rename(columns={"hue": "x" * 101})
    odd.to_parquet("odd.parquet", index=False)
    whole.to_csv("index.csv")

    with pytest.raises(TaskError) as refused:
        tabular(data, label, toml).table_model()

    assert re.search(said, str(refused.value))


def test_without_a_survey_the_model_has_no_averages_of_the_sites_data(tmp_path: Path) -> None:
    """Where these would have to travel, differential privacy and sealing refuse the model."""
    write_tables("wines", tmp_path)

    models = {
        surveyed: CheckedTask(
            reading_from(load_task("tabular"), DataSource(HELD_OUT, LABEL, surveyed=surveyed))
        ).model(0)
        for surveyed in (True, False)
    }

    groups = {surveyed: {spec.group for spec in model.layout.tensors} for surveyed, model in models.items()}
    assert groups == {True: {"trained", "statistic"}, False: {"trained"}}
    assert models[False].layout.difference(models[True].layout)


def test_columns_can_be_left_out_and_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = table_of("wines").assign(patient_id="x")
    frame[::2].to_parquet("rows.parquet")

    table = tabular("rows.parquet", LABEL, 'leave_out = ["patient_id", "hue"]').table_model()

    assert table.columns == tuple(name for name in frame.columns if name not in (LABEL, "patient_id", "hue"))


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('columns = ["a"]\nleave_out = ["b"]', "columns and leave_out are both set"),
        ('classes = ["a", "b"]\ntarget = "number"', 'classes are given and target is "number"'),
        ('classes = ["a", "b"]\ncenter = 1', "center is for a label that is a number"),
        ("hidden = [0]", "hidden in .tabular. of own.toml must be greater than or equal to 1"),
        ("dropout = 1", "dropout in .tabular. of own.toml must be less than 1"),
        ("layers = 3", "unknown setting 'layers' in .tabular. of own.toml"),
    ],
)
def test_wrong_settings_are_named_with_their_file(toml: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tabular(HELD_OUT, LABEL, toml)


@pytest.mark.parametrize(
    "steps",
    [
        DataSteps(outliers="mad:5", balance="balanced_softmax"),
        DataSteps(impute="knn:3", balance="smote:3"),
        DataSteps(impute="drop", outliers="forest:0.01", duplicates="drop", labels="weigh:0.1"),
        DataSteps(balance="weights", augment=("noise:0.1", "mixup:0.2")),
    ],
    ids=str,
)
def test_the_data_steps_work(steps: DataSteps, tmp_path: Path) -> None:
    write_tables("tumours", tmp_path)
    task = of_site("site-1", tabular(HELD_OUT, LABEL)).with_data_steps(steps)

    assert np.isfinite(a_round(task, Site())["loss"])


def test_a_step_that_adds_columns_is_refused() -> None:
    with pytest.raises(ConfigError, match="indicator adds columns, and the task tabular takes exactly"):
        tabular(HELD_OUT, LABEL).with_data_steps(DataSteps(indicator=True))


def test_an_evaluator_fills_what_is_missing_and_drops_rows_without_a_label(tmp_path: Path) -> None:
    write_tables("tumours", tmp_path)
    beginning = tabular(HELD_OUT, LABEL)
    config = Path("own.toml")
    source = DataSource("site-1", LABEL, config, "evaluate")
    judge = TabularTask().with_source(source).with_table_model(beginning.table_model())

    metrics = judge.evaluate(judge.initial_weights(0))

    assert np.isfinite(metrics["loss"])
    assert 0 <= metrics["accuracy"] <= 1
    with pytest.raises(NoHeldOutData, match="start an evaluator with --data"):
        of_site("site-1", beginning).evaluate(judge.initial_weights(0))


def test_rows_from_elsewhere_are_taken_by_the_names_of_their_columns(tmp_path: Path) -> None:
    write_tables("wines", tmp_path)
    table = tabular(HELD_OUT, LABEL).table_model()
    frame = table_of("wines")
    x, y = frame.drop(columns=LABEL), frame[LABEL].to_numpy()
    swapped = x[list(reversed(x.columns))]
    named = NamedTable(tuple(swapped.columns), swapped.to_numpy(np.float32))

    def given(rows: object) -> TabularTask:
        return TabularTask().with_train_data(lambda _: (rows, y)).with_table_model(table)

    for rows in (x, swapped.assign(ward="north"), named):
        found, labels = rows_of(given(rows))
        np.testing.assert_array_equal(found, x.to_numpy(np.float32))
        assert labels.tolist() == [("class_0", "class_1", "class_2").index(each) for each in y]
    with pytest.raises(TaskError, match=r"with the names of the columns in x\.columns"):
        CheckedTask(given(x.to_numpy())).prepare(Site())


def test_a_keras_file_of_the_model_is_read_again(tmp_path: Path) -> None:
    write_tables("wines", tmp_path)
    task = tabular(HELD_OUT, LABEL)
    weights = task.initial_weights(3)

    task.save(weights, Path("model.keras"))

    again = TabularTask().with_table_model(task.table_model())
    loaded = again.load(Path("model.keras"))
    assert all(np.array_equal(weights[name], loaded[name]) for name in weights)
