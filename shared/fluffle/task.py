"""A Task is what a user writes: the model, this site's data and the evaluation, in numpy arrays.

With Keras, write two or three functions and make a task of them with `fluffle_worker.keras_task.KerasTask`.
With anything else (PyTorch, scikit-learn, plain numpy), write a class with the methods of `Task`, which takes
and returns numpy arrays; TensorFlow is not needed. `examples/` has one of each.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import FluffleError, TaskError
from fluffle.model import Group, Weights
from fluffle.plan import Plan
from fluffle.survey.result import SurveyResult
from fluffle.survey.statistics import DataStatistics
from fluffle.task_errors import in_one_line, place_of

# These bring a public data set, which is dealt out to the sites.
DATA_SETS = ("digits", "fashion_mnist", "diabetes")
READY_TASKS: Mapping[str, str] = {
    name: f"fluffle_worker.tasks.{name}:task" for name in (*DATA_SETS, "tabular")
}

# Fewer messages on stderr, and the same order of summation on CPUs of different kinds (small networks do not
# become slower).
KERAS_ENVIRONMENT: Mapping[str, str] = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Which site this is: `index` of `count`, and how a shared data set is split among the sites.

    A task that reads its own site's data ignores this. The ready tasks cut one public data set into `count`
    parts by `split` ("iid", "dirichlet:0.5" or "shards:2"), in the same way on every machine for the same
    `seed`. `validation` is the share of its data that the site holds out, to evaluate versions on.
    `statistics` are those of the data of all sites, once the federation's survey has them; None before that,
    and without a survey.
    """

    index: int = 0
    count: int = 1
    split: str = "dirichlet:0.5"
    seed: int = 0
    validation: float = 0.0
    statistics: SurveyResult | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The result of one round of local training: the weights, the number of examples used, and metrics.

    `weights` are all tensors that `train` was given, in any order. `examples` counts each example once,
    however many epochs there were: it may weigh the update. A metric is a number or a vector of numbers.
    """

    weights: Weights
    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class MeanOf:
    """A metric that is a mean, as its sum and what it is divided by: numbers, or one vector for each.

    Both are summed over all sites, so that the result is that of all their data. Accuracy is the number of
    right answers and the number of examples; recall, one for each class, the right answers among the examples
    of a class and their number. With `is_root` the metric is the square root of the mean, such as the RMSE.
    """

    total: float | NDArray[np.generic]
    count: float | NDArray[np.generic]
    is_root: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Validated:
    """What a site has measured on the `examples` that it holds out.

    A metric is a `MeanOf` where it is a mean. A plain number or vector, such as an AUC, is never summed up:
    over all sites there is only the mean of their values.
    """

    examples: int
    metrics: Mapping[str, float | NDArray[np.generic] | MeanOf]


class Progress(Protocol):
    """How a task reports the progress of a round: `done` of `total` minibatches."""

    def __call__(self, done: int, total: int) -> None:
        """Report progress; call it after every minibatch. The update says how many there were."""


@runtime_checkable
class Task(Protocol):
    """One model and its data. A process makes one task and calls it from one thread.

    A task may have more methods, see `GroupedTask`, `ResumableTask`, `SurveyedTask` and `ResizableTask`.
    Without `tensor_groups` all float tensors are trained, and of integer tensors the newest update's value
    stands.
    """

    def initial_weights(self, seed: int) -> Weights:
        """Return the named arrays of a fresh model; the same seed gives the same bits."""

    def prepare(self, site: Site) -> int:
        """Load this site's training data and return its number of examples.

        Raises TaskError when the data is missing, and says where it was expected and how to get it.
        """

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Train from `weights` on the prepared data as the plan says; `seed` orders the minibatches.

        `weights` are all tensors of `initial_weights` except the frozen ones, and may be read-only.
        """

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return metrics of `weights` on held-out data, such as "accuracy" and "loss": at least one.

        A metric is a number, or a vector of numbers, one for each class.
        """

    def save(self, weights: Weights, path: Path) -> None:
        """Write the model in the framework's own format, such as `.keras`; raises a FluffleError."""

    def load(self, path: Path) -> Weights:
        """Read weights from a file of the framework's own format, as `save` does; raises a FluffleError."""


class ResumableTask(Task, Protocol):
    """A task that can keep its optimizer's state over restarts, for plans with `keep_optimizer`."""

    def optimizer_state(self) -> Weights:
        """Return the optimizer's state after a round as named arrays, which stay in the worker's folder."""

    def restore_optimizer(self, state: Weights) -> None:
        """Continue from such a state in the next round; from a fresh optimizer when it is empty."""


class PartialTask(Task, Protocol):
    """A task that can train the last layers of its model alone, for workers with `--train-share`."""

    def train_last(self, share: float) -> str:
        """Train, from the next round on, the last layers with at most a share of the trained parameters.

        `share` is above 0 and at most 1, which is the whole model. Returns the name of the first tensor that
        may change: it and those after it, in the order of `initial_weights`, are sent. `train` returns all
        tensors, as without it. Raises TaskError when the last layer alone has more.
        """


class ResizableTask(Task, Protocol):
    """A task whose minibatches may have another size at each worker: for `--batch-size auto`."""

    def learning_rate_power(self) -> float | None:
        """Return how the learning rate grows with the size of minibatches, once `prepare` was called.

        1 is in proportion to it, as for SGD, 0.5 with its square root, as for Adam, and 0 not at all. None
        says that the data has minibatches of its own size, whatever the plan says.
        """


class GroupedTask(Task, Protocol):
    """A task that says which of its tensors are not trained."""

    def tensor_groups(self) -> Mapping[str, Group]:
        """Return the groups of tensors by name, after `initial_weights` or `load`; all others are trained.

        A "statistic" is computed from data, like the moving variance of BatchNormalization, and is averaged
        as a value. A "frozen" tensor never changes and is not sent: `train` and `evaluate` are not given it,
        and every site must have the same values. A "local" one stays with its worker.
        """


class ValidatingTask(Task, Protocol):
    """A task that evaluates versions on data that the site holds out: `Site.validation`, or what it likes."""

    def validate(self, weights: Weights) -> Validated | None:
        """Return metrics of `weights` on this site's held-out data, after `prepare`; None if it has none."""


class SurveyedTask(Task, Protocol):
    """A task that can answer to a survey; `prepare` then gets the result in `site.statistics`."""

    def statistics(self) -> DataStatistics:
        """Return those of the prepared training data, as `fluffle.survey.statistics_of` makes them."""

    def use_statistics(self, statistics: SurveyResult) -> None:
        """Use the survey's result in `evaluate`; an evaluator calls this, which prepares no training data."""


def name_of_task(task: Task) -> str:
    """Return the name of a task object in logs: its class."""
    return f"{type(task).__module__}:{type(task).__qualname__}"


def set_keras_environment() -> None:
    """Set variables that must be there before TensorFlow is imported, unless the user has set them."""
    for variable, value in KERAS_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


def place_of_task(name: str) -> tuple[str, str]:
    """Return the module of a task and its name in there; raises TaskError for a name that says neither."""
    if ":" not in name and name not in READY_TASKS:
        known = ", ".join(READY_TASKS)
        raise TaskError(f"unknown task {name!r}: say one of {known}, or your own as package.module:name")
    module_name, _, attribute = READY_TASKS.get(name, name).partition(":")
    if not module_name or not attribute:
        raise TaskError(f"the task {name!r} must read like package.module:name")
    return module_name, attribute


def load_task(name: str) -> Task:
    """Find a task by the name of a ready one or as "package.module:attribute".

    Raises TaskError when the module cannot be imported, or when the attribute is missing or is no task.
    """
    module_name, attribute = place_of_task(name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    set_keras_environment()
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except FluffleError:
        raise
    except (Exception, SystemExit) as error:  # whatever is wrong in the user's module
        raise TaskError(
            f"the task {name!r} cannot be imported: {in_one_line(error)}{place_of(error)}"
        ) from error
    if isinstance(found, type):
        raise TaskError(f"{name!r} is a class, not a task: name an instance of it")
    if not isinstance(found, Task):
        missing = [part for part in vars(Task) if not part.startswith("_") and not hasattr(found, part)]
        raise TaskError(f"{name!r} is no task: it lacks {', '.join(missing)}")
    return found
