"""The table [data] of a worker's TOML file: what it overrides, and what is said when it is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
from tasks.grouped_task import FourGroups
from typer.testing import CliRunner

from fluffle.errors import ConfigError
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import Site, load_task
from fluffle_cli.main import app
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.data import DataSteps
from fluffle_worker.data.table import with_data_table
from fluffle_worker.keras_task import KerasTask


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def steps_with(table: str, own: DataSteps | None = None) -> DataSteps | None:
    Path("fluffle.toml").write_text(table, encoding="utf-8")
    task = load_task("digits")
    assert isinstance(task, KerasTask)
    task = task.with_data_steps(own) if own else task
    changed = with_data_table(task, None)
    assert isinstance(changed, KerasTask)
    return changed.data_steps


def test_a_key_in_the_table_wins_over_the_tasks_own_steps_and_the_others_stay() -> None:
    own = DataSteps(impute="mean", outliers="mad")

    steps = steps_with('[data]\nimpute = "knn:3"\naugment = ["noise:0.2"]\n', own)

    assert steps == DataSteps(impute="knn:3", outliers="mad", augment=("noise:0.2",))


def test_without_a_table_the_task_keeps_what_it_was_made_with() -> None:
    assert steps_with("heartbeat_s = 31\n") is None


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('[data]\nimput = "mean"\n', r"unknown setting 'imput' in \[data\] .* \(did you mean impute\?\)"),
        (
            '[data]\nimpute = "magic"\n',
            r"impute must be one of .* not 'magic' \(in \[data\] of fluffle.toml\)",
        ),
        ('[data]\nseed = "one"\n', r"seed in \[data\] of fluffle.toml must be a valid integer, not 'one'"),
        (
            "[data]\nseed = -1\n",
            r"seed in \[data\] of fluffle.toml must be greater than or equal to 0, not -1",
        ),
        (
            '[data]\naugment = "noise"\n',
            r"augment in .* must be a list of texts, such as \[\"noise\"\], not 'noise'",
        ),
        ("[data]\naugment = [3]\n", r"augment in .* must be a list of texts, not \[3\]"),
        ("[data]\naugment = 3\n", r"augment in .* must be a list, not 3"),
        ("data = 3\n", r"data in fluffle.toml must be a table, written \[data\], not 3"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(table: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        steps_with(table)


def test_a_table_for_a_task_that_takes_no_steps_is_not_ignored() -> None:
    Path("fluffle.toml").write_text('[data]\nimpute = "mean"\n', encoding="utf-8")

    with pytest.raises(ConfigError, match=r"FourGroups is no KerasTask: take the steps in its prepare"):
        with_data_table(FourGroups(), None)


def test_task_check_takes_the_steps_of_the_table() -> None:
    everything = load_task("digits").prepare(Site(count=4))
    Path("fluffle.toml").write_text('[data]\nbalance = "undersample"\n', encoding="utf-8")

    done = CliRunner().invoke(app, ["task", "check", "--task", "digits", "--local-steps", "2"])

    assert done.exit_code == 0, done.stderr
    found = re.search(r"(\d+) examples at site 0 of 4", done.stdout)
    assert found
    assert int(found[1]) < everything


def test_simulated_devices_balanced_by_weights_are_still_trained_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = load_task("digits")
    assert isinstance(task, KerasTask)
    given = {"task": "digits", "clients": 6, "buffer_size": 3, "max_updates": 6, "split": "iid"}
    settings = load_arguments(SimulateSettings, given)

    ends = []
    for balance in ("none", "weights", "smote"):
        versions: list[ModelVersion] = []
        steps = DataSteps(balance=balance)
        SimulatedFederation(settings, task.with_data_steps(steps), versions.append).run()
        ends.append(np.asarray(versions[-1].vector))

    assert "one by one" not in caplog.text
    assert all(np.isfinite(end).all() for end in ends)
    assert not np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
