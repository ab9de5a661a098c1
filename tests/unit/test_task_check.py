"""`fluffle task check`: what a user runs first, on tasks without a framework that work, and that do not."""

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from tasks.grouped_task import FourGroups
from typer.testing import CliRunner, Result

from fluffle.errors import NoHeldOutData
from fluffle.model import Weights
from fluffle.task import Task, Trained
from fluffle_cli import task_command
from fluffle_cli.main import app

Does = Callable[..., object]
numbers = itertools.count()


class Complete(FourGroups):
    """Four groups of tensors, and a file that holds the frozen ones as well."""

    def save(self, weights: Weights, path: Path) -> None:
        super().save({**self.initial_weights(0), **weights}, path)


def check(*flags: str) -> Result:
    return CliRunner().invoke(app, ["task", "check", *flags])


def check_object(monkeypatch: pytest.MonkeyPatch, task: Task) -> Result:
    monkeypatch.setattr(task_command, "load_task", lambda _: task)
    return check("--task", "mine:task")


def a_task_whose(function: str, does: Does) -> Task:
    task = Complete()
    vars(task)[function] = does
    return task


def fail(*_arguments: object, **_options: object) -> object:
    raise ValueError("no such file")


def no_held_out_data(_weights: Weights) -> Mapping[str, float]:
    raise NoHeldOutData("no held-out data")


def not_a_number(weights: Weights, *_arguments: object, **_options: object) -> Trained:
    spoilt = {
        name: array if name == "count" else np.full_like(array, np.nan) for name, array in weights.items()
    }
    return Trained(spoilt, 10, {"loss": float("nan")})


def nothing_learnt(weights: Weights, *_arguments: object, **_options: object) -> Trained:
    return Trained(weights, 10, {"loss": 1.0})


def other_each_time(_seed: int) -> Weights:
    return {**FourGroups().initial_weights(0), "w": np.full(2, next(numbers), np.float32)}


def another_base_each_time(_seed: int) -> Weights:
    return {**FourGroups().initial_weights(0), "base": np.full(1000, next(numbers), np.float32)}


def test_a_task_that_works_is_tried_step_by_step_and_its_example_needs_no_broker() -> None:
    done = check("--task", "examples.numpy_task:task", "--sites", "2", "--site", "1")

    assert done.exit_code == 0, done.stderr
    steps = [line.split()[0] for line in done.stdout.splitlines()[:6]]
    assert steps == ["task", "model", "data", "round", "evaluation", "file"]
    assert "examples at site 1 of 2" in done.stdout
    assert "20 minibatches: loss " in done.stdout
    assert "saved and loaded with the same weights" in done.stdout
    assert "examples.numpy_task:task works" in done.stdout


def test_a_table_has_the_tensors_parameters_and_bytes_of_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    done = check_object(monkeypatch, Complete())

    assert done.exit_code == 0, done.stderr
    rows = [line.replace("│", " ").split()[:4] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [
        ["trained", "1", "2", "8"],
        ["statistic", "2", "3", "16"],
        ["frozen", "1", "1,000", "0"],
        ["local", "1", "2", "0"],
    ]
    assert "an update takes at most 24 bytes with --codec float32" in done.stdout


MISTAKES: dict[str, tuple[str, Does, str]] = {
    "weights that another call does not give": (
        "initial_weights",
        other_each_time,
        "initial_weights gave other values for w when it was called again with the seed 0",
    ),
    "a frozen base that another call does not give": (
        "initial_weights",
        another_base_each_time,
        "initial_weights gave two models from one seed: .* load the same pretrained weights",
    ),
    "data that is not there": ("prepare", fail, "prepare raised ValueError: no such file"),
    "no examples": ("prepare", lambda _site: 0, "prepare found 0 examples"),
    "a round that raises": ("train", fail, "train raised ValueError: no such file"),
    "a round that gives NaN": (
        "train",
        not_a_number,
        "training gave NaN or infinite values in .*learning rate",
    ),
    "a metric that is text": ("evaluate", lambda _: {"auc": "high"}, "the metric 'auc' must be a number"),
    "held-out data that gives NaN": (
        "evaluate",
        lambda _: {"accuracy": 0.5, "loss": float("nan")},
        "evaluate returned loss nan .* the held-out data may hold missing values",
    ),
    "no file": ("save", lambda *_: None, "save wrote no file"),
    "a file that holds something else": (
        "load",
        lambda _: FourGroups().initial_weights(0),
        "load reads other values than save wrote in count, head, mean and 1 more",
    ),
    "a load without the frozen tensors": ("save", FourGroups().save, "tensor_groups names tensors that"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    function, does, said = MISTAKES[kind]

    done = check_object(monkeypatch, a_task_whose(function, does))

    assert done.exit_code == 2
    assert re.search(said, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "works" not in done.stdout


def test_a_task_or_a_site_that_does_not_exist_is_named() -> None:
    nowhere, beyond = check("--task", "nowhere:task"), check("--task", "digits", "--site", "4")

    assert (nowhere.exit_code, beyond.exit_code) == (2, 2)
    assert "'nowhere:task' cannot be imported" in nowhere.stderr
    assert "there is no site 4 of 4 (0 to 3): set --site or --sites" in beyond.stderr


def test_the_task_may_stand_in_a_table_of_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = check()
    (tmp_path / "fluffle.toml").write_text('[check]\ntask = "examples.numpy_task:task"\n')

    found = check("--local-steps", "2")

    assert missing.exit_code == 2
    assert "task is not set: give --task, FLUFFLE_TASK or task in [check]" in missing.stderr
    assert found.exit_code == 0, found.stderr
    assert "2 minibatches: loss " in found.stdout


def test_a_task_without_held_out_data_is_good_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    done = check_object(monkeypatch, a_task_whose("evaluate", no_held_out_data))

    assert done.exit_code == 0, done.stderr
    assert "the task has no held-out data (an evaluator needs it, a worker does not)" in done.stdout


@pytest.mark.parametrize(
    ("metrics", "flag"),
    [
        ({"loss": 0.5, "accuracy": 0.7}, '--target "accuracy>=0.9"'),
        ({"loss": 0.5}, '--target "loss<=0.25"'),
        ({"bleu": 12.0}, '--target "bleu>=BOUND"'),
    ],
)
def test_the_demo_that_is_proposed_has_the_target_that_a_task_of_ones_own_needs(
    monkeypatch: pytest.MonkeyPatch, metrics: Mapping[str, float], flag: str
) -> None:
    done = check_object(monkeypatch, a_task_whose("evaluate", lambda _: metrics))

    assert done.stdout.splitlines()[-1].endswith(f"fluffle demo --task mine:task {flag}")


def test_tensors_that_training_leaves_alone_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    done = check_object(monkeypatch, a_task_whose("train", nothing_learnt))

    assert done.exit_code == 0, done.stderr
    assert "the round did not change w: does the model's output depend on it?" in done.stdout


def test_help_says_that_no_broker_is_needed_and_shows_no_flag_for_one() -> None:
    shown = check("--help").stdout

    assert "no RabbitMQ is needed" in shown
    assert "--task" in shown
    assert "--broker-url" not in shown
