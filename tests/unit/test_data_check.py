"""`fluffle data check`: what it says of clean and dirty data, its page, and when it exits with 1."""

import importlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_wine
from tasks.grouped_task import FourGroups
from typer.testing import CliRunner, Result

from fluffle.task import Site, Task, load_task
from fluffle_cli.data_check import command
from fluffle_cli.main import app
from fluffle_worker.data import DataSteps
from fluffle_worker.data.profile import profile_of
from fluffle_worker.data.rows import read_rows
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check_object(monkeypatch: pytest.MonkeyPatch, task: Task) -> Result:
    monkeypatch.setattr(command, "load_task", lambda _: task)
    return CliRunner().invoke(app, ["data", "check", "--task", "mine:task"])


def check(monkeypatch: pytest.MonkeyPatch, data: object, steps: DataSteps | None = None) -> Result:
    def no_model() -> Any:
        raise AssertionError("a report on data needs no model")

    return check_object(monkeypatch, KerasTask(no_model, lambda _site: data, data=steps))


def dirty() -> tuple[pd.DataFrame, pd.Series]:
    """Breast cancer with a rare class, missing and infinite values, a constant column and duplicates."""
    frame = load_breast_cancer(as_frame=True)
    keep = (frame.target == 1) | (np.arange(569) % 8 == 0)
    x, y = frame.data[keep].reset_index(drop=True), frame.target[keep].reset_index(drop=True)
    x = x.mask(np.random.default_rng(0).random(x.shape) < 0.05)
    x.iloc[7, 2] = np.inf
    x["<b>ward</b>"] = 7.0
    return pd.concat([x, x[:5]]), pd.concat([y, y[:5]])


class Outside(HTMLParser):
    """Notes what a page would load or run."""

    found: tuple[str, ...] = ()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag in {"script", "link", "img", "iframe", "b"} or names & {"src", "href", "onload"}:
            self.found += (tag,)


def test_a_report_counts_what_is_wrong_and_says_what_each_step_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = dirty()
    steps = DataSteps(duplicates="drop", outliers="mad", balance="oversample")

    done = check(monkeypatch, (x, y), steps)

    assert done.exit_code == 0, done.stderr
    rows, missing = len(x), int(x.isna().sum().sum())
    assert f"{rows} rows of 31 inputs" in done.stdout
    assert "5 rows are equal to an earlier one" in done.stdout
    lines = [line.split("│") for line in done.stdout.splitlines() if "│" in line]
    by_name = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert by_name["duplicates"][:2] == [str(rows), str(rows - 5)]
    assert by_name["infinite values"][2] == "1 infinite values count as missing"
    most = str((y[:-5] == 1).sum())
    assert by_name["0"] == [str((y == 0).sum()), most]
    assert by_name["1"] == [str((y == 1).sum()), most]
    profile = profile_of(read_rows((x, y)))
    assert sum(each.missing for each in profile.columns) == missing
    assert [each.name for each in profile.columns if each.is_constant] == ["<b>ward</b>"]


def test_the_page_has_pictures_and_loads_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, dirty())

    page = Path("data-check.html").read_text(encoding="utf-8")
    outside = Outside()
    outside.feed(page)
    assert outside.found == ()
    assert page.count("<svg") == 32
    assert "&lt;b&gt;ward&lt;/b&gt;" in page
    assert "default-src 'none'" in page


def test_a_ready_task_is_looked_at_without_a_model() -> None:
    done = CliRunner().invoke(app, ["data", "check", "--task", "diabetes", "--out", "report.html"])

    assert done.exit_code == 0, done.stderr
    assert "rows of 10 inputs" in done.stdout
    assert Path("report.html").is_file()


def test_the_minibatches_of_a_stream_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_wine(return_X_y=True)
    slices = importlib.import_module("tensorflow").data.Dataset.from_tensor_slices

    done = check(monkeypatch, slices((x, y)).batch(50))

    assert done.exit_code == 0, done.stderr
    assert "178 rows of 13 inputs" in done.stdout


X, Y = load_wine(return_X_y=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((X[:0], Y[:0]), "there are no rows: train_data must return at least 1"),
        ((X, np.ones(178, int)), "all rows have the class 1: a site with one class"),
        ((np.full((5, 2), np.nan), [0, 1, 0, 1, 0]), "all values of all 2 columns are missing"),
        ((X, np.full(178, np.nan)), "none of the 178 rows has a label"),
        (
            (np.where(np.arange(13) == 3, np.nan, X), Y),
            "no value is there in any of the 178 rows of train_data in the columns 3",
        ),
    ],
)
def test_senseless_training_exits_with_1_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, data: object, reason: str
) -> None:
    done = check(monkeypatch, data)

    assert done.exit_code == 1
    assert f"training would be senseless or refused here: {reason}" in done.stderr
    assert "senseless or refused here" in Path("data-check.html").read_text(encoding="utf-8")


def test_a_step_that_leaves_hardly_any_rows_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    left = int((~np.isnan(x).any(axis=1)).sum())
    said = f"the data step impute drop left only {left} of 178 rows"

    done = check(monkeypatch, (x, Y), DataSteps(impute="drop"))

    assert 0 < left < 18
    assert done.exit_code == 0, done.stderr
    assert f"warning: {said}\n" in done.stdout
    assert f"Warning: {said}." in Path("data-check.html").read_text(encoding="utf-8")

    KerasTask(a_regression, lambda _site: (x, Y), data=DataSteps(impute="drop")).prepare(Site())
    assert "a data step left less than a tenth of the rows" in caplog.text


def a_regression() -> KerasModel:
    keras = import_keras()
    model = keras.Sequential([keras.Input((13,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (DataSteps(augment=("cutmix",)), "augment cutmix:1 is for images"),
        (DataSteps(balance="focal"), "balance focal:2 needs a model with one output"),
        (DataSteps(balance="logit_adjustment"), "balance logit_adjustment:1 needs the classes of all sites"),
    ],
)
def test_a_step_that_a_worker_would_refuse_exits_with_1_and_its_sentence(
    monkeypatch: pytest.MonkeyPatch, steps: DataSteps, reason: str
) -> None:
    task = KerasTask(a_regression, lambda _site: (X, Y), data=steps)

    done = check_object(monkeypatch, task)

    assert done.exit_code == 1
    assert f"refused here: {reason}" in done.stderr
    assert reason in Path("data-check.html").read_text(encoding="utf-8")


def test_not_all_of_thousands_of_classes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    done = check(monkeypatch, (X, np.arange(178) * 500))

    assert done.exit_code == 0, done.stderr
    assert "88,401 more classes, up to 88500, are not shown" in done.stdout
    assert len(done.stdout.splitlines()) < 200
    assert Path("data-check.html").stat().st_size < 200_000


@pytest.mark.parametrize("form", ["dictionary", "sparse matrix"])
def test_missing_values_of_inputs_that_are_no_table_are_counted_and_refused(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    x = X.copy()
    x[:7, 2], x[3:9, 4] = np.nan, np.inf

    inputs = {"a": x, "b": X[:, 0]} if form == "dictionary" else sparse.csr_array(x)
    done = check(monkeypatch, (inputs, Y))

    assert done.exit_code == 1
    assert "9 have missing values" in done.stdout
    assert "columns: not looked at: this needs one array or data frame of numbers" in done.stdout
    assert "0 columns" not in done.stdout
    assert "9 rows have missing or infinite values, which the data steps fill in one array" in done.stderr


def test_a_regression_whose_targets_are_whole_numbers_has_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = np.arange(178) - 1_700_000_000

    done = check(monkeypatch, (X, seconds))

    assert done.exit_code == 0, done.stderr
    assert "class" not in done.stdout.replace("a class for each row", "")


def test_data_that_takes_long_to_read_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = []

    def reads(site: Site) -> object:
        sites.append(site)
        return dirty()

    done = check_object(monkeypatch, KerasTask(a_regression, reads, data=DataSteps(impute="median")))

    assert done.exit_code == 0, done.stderr
    assert len(sites) == 1


def test_a_task_that_is_no_keras_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = check_object(monkeypatch, FourGroups())

    assert done.exit_code == 2
    assert "only the data of a KerasTask can be looked at" in done.stderr


def test_data_steps_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fluffle.toml").write_text('[data]\nbalance = "undersample"\n', encoding="utf-8")

    done = check_object(monkeypatch, load_task("digits"))

    assert "balance undersample" in done.stdout
