"""Mistakes in a task of one's own: each is one sentence that names the function and what came."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from working import CountingTask

from fluffle.checked_task import CheckedTask, checked_metrics
from fluffle.errors import OutOfMemory, TaskError
from fluffle.plan import Plan
from fluffle.task import Site, Trained

Call = Callable[[CheckedTask], object]
NOTHING: Any = None


def train(task: CheckedTask) -> object:
    model = task.model()
    return task.train(model.weights, Plan(), seed=0, progress=lambda _done, _total: None)


CALLS: Mapping[str, Call] = {
    "initial_weights": lambda task: task.model(),
    "prepare": lambda task: task.prepare(Site()),
    "train": train,
    "evaluate": lambda task: task.evaluate({}),
    "save": lambda task: task.save({}, Path("model.keras")),
    "load": lambda task: task.load(Path("model.keras")),
}


def a_task_whose(function: str, does: Callable[..., object]) -> CheckedTask:
    task = CountingTask()
    vars(task)[function] = does
    return CheckedTask(task)


def a_task_that_returns(function: str, value: object) -> CheckedTask:
    return a_task_whose(function, lambda *_args, **_kwargs: value)


class Odd:
    """Refuses to become an array."""

    def __array__(self, *_args: object, **_kwargs: object) -> object:
        raise RuntimeError("no array")


LABEL = "Received a label value of 3 which is outside the valid range of [0, 3)."
DETECTED = "Graph execution error:\n\nDetected at node loss/Logits defined at (most recent call last):\n"
STACK = '  File "/home/me/own.py", line 5, in <module>\n\n  File "/lib/trainer.py", line 2, in step\n\n'
AROUND_A_SENTENCE = {
    "a compiled step": f"{DETECTED}{STACK}{LABEL}",
    "a compiled step without its stack": f"{DETECTED}<stack traces unavailable>\n{LABEL}",
    "an eager step": f"{{{{function_node __wrapped__Logits_device_/job:localhost/device:CPU:0}}}} {LABEL}",
    "a message in bold": f"\x1b[1m{LABEL}\x1b[0m",
}


@pytest.mark.parametrize("kind", AROUND_A_SENTENCE)
def test_what_a_framework_puts_around_its_sentence_does_not_hide_it(kind: str) -> None:
    def fail(*_arguments: object, **_options: object) -> object:
        raise RuntimeError(AROUND_A_SENTENCE[kind])

    with pytest.raises(TaskError) as raised:
        train(a_task_whose("train", fail))

    said = str(raised.value).replace("Graph execution error: ", "")
    assert said.startswith(f"train raised RuntimeError: {LABEL} (test_checked_task.py")


@pytest.mark.parametrize(
    "error", [ValueError("a b"), RuntimeError("a b"), KeyError("a b"), SystemExit("a b"), MemoryError("a b")]
)
@pytest.mark.parametrize("function", CALLS)
def test_whatever_a_function_raises_is_a_task_error_with_its_name_and_the_users_line(
    function: str, error: BaseException
) -> None:
    def fail(*_args: object, **_kwargs: object) -> object:
        raise error

    with pytest.raises(TaskError) as raised:
        CALLS[function](a_task_whose(function, fail))

    said = str(raised.value)
    assert said.startswith(f"{function} raised {type(error).__name__}: ")
    assert "a b" in said
    assert f"({Path(__file__).name}, line {fail.__code__.co_firstlineno + 1}, in fail)" in said
    assert raised.value.__cause__ is error


# What frameworks say of a GPU, as in tensorflow #33916, #36781 and #20356.
OUT_OF_GPU_MEMORY = (
    "failed to create cublas handle: CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to get convolution algorithm: CUDNN_STATUS_ALLOC_FAILED",
    "Failed to allocate request for 1.00GiB on device ordinal 0: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
)
FAILED_GPU = (
    "Blas GEMM launch failed : a.shape=(32, 116032), b.shape=(116032, 256), m=32, n=256, k=116032",
    "failed to query event: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",
    "INTERNAL: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: an illegal memory access was encountered",
)


@pytest.mark.parametrize("message", [*OUT_OF_GPU_MEMORY, *FAILED_GPU])
def test_a_gpu_without_memory_and_one_that_failed_are_told_apart(message: str) -> None:
    def fail(*_arguments: object, **_options: object) -> object:
        raise RuntimeError(message)

    with pytest.raises(TaskError) as raised:
        train(a_task_whose("train", fail))

    has_failed = "the GPU has failed, and only a new process can use it again" in str(raised.value)
    assert has_failed == (message in FAILED_GPU)
    assert isinstance(raised.value, OutOfMemory) == (message in OUT_OF_GPU_MEMORY)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    lacks = a_task_whose("prepare", lambda _site: importlib.import_module("skan.images"))
    lacks_keras = a_task_whose("prepare", lambda _site: importlib.import_module("keras"))

    with pytest.raises(TaskError, match="prepare needs the package 'skan', which is not installed"):
        lacks.prepare(Site())
    with pytest.raises(TaskError, match=r"needs keras, which is not installed: .* the extra \[worker\]"):
        lacks_keras.prepare(Site())


def test_a_long_message_of_many_lines_becomes_one_short_line() -> None:
    def fail(_site: Site) -> int:
        raise ValueError("shapes do not match\n" * 100)

    with pytest.raises(TaskError) as raised:
        a_task_whose("prepare", fail).prepare(Site())

    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert "(-v shows the rest)" in str(raised.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "must return numpy arrays by name, not NoneType None"),
        ([np.zeros(2)], "must return numpy arrays by name, not list"),
        ({1: np.zeros(2)}, "the name of a tensor must be text, not int 1"),
        ({"w": [1.0]}, "the tensor 'w' must be a numpy array, not list"),
        ({"w": np.array([None])}, "tensor w has the dtype object"),
        ({"w": np.array(["a"])}, "tensor w has the dtype str"),
        ({}, "no float tensor that is trained: there is nothing to train"),
        ({"n": np.zeros(2, np.int64)}, "no float tensor that is trained"),
    ],
)
def test_initial_weights_that_are_no_arrays_are_refused(value: object, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        a_task_that_returns("initial_weights", value).model()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "prepare must return the number of examples as an int, not NoneType None"),
        (True, "not bool True"),
        ("10", "not str '10'"),
        (10.0, "not float 10.0"),
        (0, "prepare found 0 examples"),
        (-3, "prepare found -3 examples"),
    ],
)
def test_a_number_of_examples_that_is_none_is_refused(value: object, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        a_task_that_returns("prepare", value).prepare(Site())


def test_numpys_whole_numbers_are_whole_numbers() -> None:
    assert a_task_that_returns("prepare", np.int64(7)).prepare(Site()) == 7


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "train must return a fluffle.task.Trained, not NoneType None"),
        (({"w": np.zeros(2)}, 10, {}), "train must return a fluffle.task.Trained, not tuple"),
        (Trained({}, 10, {}), "the weights lack steps, w"),
        (Trained(NOTHING, 10, {}), "train must return numpy arrays by name"),
    ],
)
def test_a_result_of_training_that_is_none_is_refused(value: object, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        train(a_task_that_returns("train", value))


@pytest.mark.parametrize("examples", [None, 10.5, "10", True])
def test_examples_that_are_no_whole_number_are_refused(examples: Any) -> None:
    weights = CountingTask().initial_weights(0)

    with pytest.raises(TaskError, match="train must return the number of examples as an int"):
        train(a_task_that_returns("train", Trained(weights, examples, {})))


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (None, "must return metrics as a dictionary of numbers, not NoneType None"),
        (0.5, "must return metrics as a dictionary of numbers, not float 0.5"),
        ([0.5], "must return metrics as a dictionary of numbers, not list"),
        ({}, "evaluate returned no metrics"),
        ({"auc": None}, "the metric 'auc' must be a number, not NoneType None"),
        ({"auc": "high"}, "the metric 'auc' must be a number, not str 'high'"),
        ({"auc": {"a": 1}}, "the metric 'auc' must be a number, not dict"),
        ({"auc": Odd()}, "the metric 'auc' must be a number"),
        ({"auc": 1 + 2j}, "the metric 'auc' must be a number"),
        ({3: 0.5}, "printable characters, not 3"),
        ({"": 0.5}, "printable characters, not ''"),
        ({"a\nb": 0.5}, "printable characters, not 'a"),
        ({"x" * 65: 0.5}, "printable characters, not 'xxx"),
        ({"f1": np.zeros(257)}, "evaluate returned 257 metrics, and at most 256 can be sent"),
    ],
)
def test_metrics_that_are_no_numbers_are_refused(metrics: object, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        a_task_that_returns("evaluate", metrics).evaluate({})


def test_metrics_may_be_numbers_of_any_kind_and_a_vector_is_one_metric_for_each_class() -> None:
    given = {
        "loss": np.float32(0.5),
        "count": 3,
        "held": True,
        "scalar": np.array(0.25),
        "f1_score": np.array([0.5, 1.0]),
        "nan": float("nan"),
    }

    found = checked_metrics("evaluate", given)

    assert np.isnan(found.pop("nan"))
    assert found == {
        "loss": 0.5,
        "count": 3.0,
        "held": 1.0,
        "scalar": 0.25,
        "f1_score/0": 0.5,
        "f1_score/1": 1.0,
    }
