"""Tasks are found by name; what cannot be found or is no task is said in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from fluffle import initial_model
from fluffle.errors import TaskError
from fluffle.safetensors_file import read_model
from fluffle.task import READY_TASKS, Task, load_task

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_trace_in_sys_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize("name", READY_TASKS)
def test_a_ready_task_is_found_by_its_short_name(name: str) -> None:
    task = load_task(name)

    assert isinstance(task, Task)


def test_to_name_every_ready_task_loads_no_tensorflow() -> None:
    code = (
        "import sys, fluffle.task as t; [t.load_task(name) for name in t.READY_TASKS]; "
        "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "[]"


def test_ones_own_task_is_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_federation.py").write_text("from fluffle_worker.tasks.digits import task as mine\n")
    monkeypatch.chdir(tmp_path)

    task = load_task("my_own_federation:mine")

    assert isinstance(task, Task)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "unknown task 'digit': say one of digits, fashion_mnist, diabetes, tabular, or your own"),
        ("no_such_package.module:task", "cannot be imported: ModuleNotFoundError: No module named"),
        (":task", "must read like package.module:name"),
        ("fluffle.errors:task", "module 'fluffle.errors' has no attribute 'task'"),
        ("fluffle.task:READY_TASKS", "is no task: it lacks initial_weights, prepare, train, evaluate"),
        ("fluffle_worker.keras_task:KerasTask", "is a class, not a task"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_with_the_reason(name: str, said: str) -> None:
    with pytest.raises(TaskError) as refused:
        load_task(name)

    assert said in str(refused.value)


def test_a_mistake_in_ones_own_module_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_with_a_mistake.py").write_text("task = undefined_name\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(TaskError, match="NameError: name 'undefined_name' is not defined"):
        load_task("module_with_a_mistake:task")


def test_the_initial_model_of_a_task_without_keras_is_written_from_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    task = "examples.numpy_task:task"

    for seed in ("0", "1"):
        initial_model.main(["--task", task, "--seed", seed, "--out", str(tmp_path / f"{seed}.safetensors")])

    zero, one = read_model(tmp_path / "0.safetensors"), read_model(tmp_path / "1.safetensors")
    expected = load_task(task).initial_weights(0)
    assert list(zero) == ["kernel", "bias"]
    assert zero["kernel"].tobytes() == expected["kernel"].tobytes() != one["kernel"].tobytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "nonsense"], "unknown task 'nonsense': say one of digits"),
        (["--task", "examples.numpy_task:task", "--from", "missing.st"], "there is no model file missing.st"),
    ],
)
def test_an_initial_model_that_cannot_be_made_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(CHECKOUT)

    with pytest.raises(SystemExit) as ended:
        initial_model.main([*arguments, "--out", str(tmp_path / "model.safetensors")])

    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.err.startswith(said)
    assert output.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
