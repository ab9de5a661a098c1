"""The commands with the task tabular: what they show, and which flags they refuse."""

import re
import threading
from pathlib import Path

import pytest
from tables import HELD_OUT, LABEL, write_tables
from typer.testing import CliRunner, Result

from fluffle.errors import LayoutError
from fluffle.safetensors_file import read_layout
from fluffle.task import load_task
from fluffle_aggregator.initial_model import initial_model
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.main import app


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fluffle(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("name", "tells"),
    [("tumours", ("benign", "malignant")), ("wines", ("class_0", "class_1", "class_2")), ("diabetes", None)],
)
def test_the_model_is_made_for_the_columns_and_the_label_of_the_rows(
    name: str, tells: tuple[str, ...] | None, tmp_path: Path
) -> None:
    whole = write_tables(name, tmp_path)

    result = fluffle("model", "init", "--task", "tabular", "--data", HELD_OUT, "--label", LABEL)

    assert result.exit_code == 0, result.output
    table = read_layout(Path("initial.safetensors")).table
    assert table is not None
    assert table.columns == tuple(name for name in whole.columns if name != LABEL)
    assert table.classes == tells
    if tells is None:
        held_out = whole[LABEL][: len(whole) // 4]
        assert table.center == pytest.approx(held_out.mean())
        assert table.scale == pytest.approx(held_out.std(ddof=0))


def test_the_commands_that_look_at_a_site_show_its_table(tmp_path: Path) -> None:
    write_tables("wines", tmp_path)
    where = ["--task", "tabular", "--data", "site-0", "--label", LABEL]

    looked, tried = (
        fluffle("data", "check", *where),
        fluffle("task", "check", *where, "--local-validation", "0.3"),
    )

    assert looked.exit_code == 0, looked.output
    assert "22 rows of 13 inputs" in looked.output
    assert tried.exit_code == 0, tried.output
    assert "the model takes 'alcohol', 'malic_acid', 'ash'" in tried.output
    assert "3 classes ('class_0', 'class_1', 'class_2')" in tried.output


def test_an_aggregator_that_is_started_again_with_other_rows_is_told_in_which_column_they_differ(
    tmp_path: Path,
) -> None:
    whole = write_tables("wines", tmp_path)
    whole.drop(columns="hue").to_parquet("other.parquet", index=False)
    fluffle("model", "init", "--task", "tabular", "--data", HELD_OUT, "--label", LABEL)
    layout = read_layout(Path("initial.safetensors"))

    def compare(data: str) -> None:
        settings = AggregatorSettings(task="tabular", data=data, label=LABEL, survey=3)
        with initial_model(settings, threading.Event(), load_task("tabular")) as initial:
            initial.compare(layout)

    compare(HELD_OUT)
    with pytest.raises(LayoutError, match=r"takes 'hue', and this one does not\. Leave it out to go on"):
        compare("other.parquet")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["task", "check", "--task", "digits", "--data", "x.csv"], "--data would have no effect: the task"),
        (["worker", "--task", "digits", "--label", "y"], "--label would have no effect"),
        (["evaluator", "--task", "numpy_task:task", "--data", "x"], "--data would have no effect"),
        (["aggregator", "--data", "x.csv"], "have no effect without --task"),
        (
            ["aggregator", "--task", "tabular", "--data", "x", "--initial-model", "a.safetensors"],
            r"or with a \.safetensors file",
        ),
        (["aggregator", "--initial-model", "s3://models/a.safetensors"], "must be a file of this machine"),
        (["worker", "--task", "tabular", "--data", "x", "--split", "iid"], "--split would have no effect"),
        (["worker", "--task", "tabular"], "give --data FILE, FOLDER or PATTERN"),
        (["worker", "--task", "tabular", "--data", "nowhere.parquet"], "nowhere.parquet"),
        (["demo", "--task", "tabular"], "--task must be one of digits, fashion_mnist, diabetes, or package"),
        (["simulate", "--task", "tabular", "--max-updates", "9"], "a simulation deals out a data set"),
    ],
    ids=" ".join,
)
def test_flags_without_an_effect_and_tasks_without_rows_are_refused(command: list[str], said: str) -> None:
    nobody = [] if command[0] in ("task", "simulate", "demo") else ["--broker-url", "amqp://127.0.0.1:1"]

    result = fluffle(*command, *nobody)

    assert result.exit_code == 2
    assert re.search(said, result.output)
    assert "Traceback" not in result.output


def test_a_table_in_the_settings_is_refused_by_a_task_that_does_not_read_it() -> None:
    Path("fluffle.toml").write_text("[tabular]\nhidden = [3]\n", encoding="utf-8")

    result = fluffle("task", "check", "--task", "digits")

    assert result.exit_code == 2
    assert "the table [tabular] of the TOML file would have no effect" in result.output


def test_the_table_of_data_steps_and_the_flag_of_the_rows_may_have_one_name(tmp_path: Path) -> None:
    write_tables("wines", tmp_path)
    Path("fluffle.toml").write_text('[data]\nimpute = "mean"\n', encoding="utf-8")

    result = fluffle("data", "check", "--task", "tabular", "--data", "site-1", "--label", LABEL)

    assert result.exit_code == 0, result.output
    assert "impute mean" in result.output


def test_a_column_of_text_is_left_out_where_a_site_is_looked_at_and_refused_where_a_federation_begins(
    tmp_path: Path,
) -> None:
    write_tables("wines", tmp_path)
    where = ["--task", "tabular", "--data", "site-1", "--label", LABEL]

    looked, begun = fluffle("data", "check", *where), fluffle("model", "init", *where)

    assert "44 rows of 13 inputs" in looked.output
    assert "'ward'" in looked.output
    assert begun.exit_code == 2
    assert "the column 'ward' of site-1 holds text" in begun.output
