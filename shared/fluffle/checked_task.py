"""The one place where a task is called: what it returns or raises is checked here.

A mistake in a task becomes a TaskError that names the function, what it returned and what was expected.
"""

import threading
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fluffle.checked_validation import site_metrics
from fluffle.data_source import TaskOfTables
from fluffle.errors import LayoutError, TaskError
from fluffle.fields import MAX_METRIC_NAME_LENGTH, MAX_METRICS, is_metric_name
from fluffle.model import GROUPS, Group, Layout, Weights, some_of
from fluffle.plan import Plan
from fluffle.sites import SiteMetric
from fluffle.stopping import interrupting
from fluffle.survey.result import SurveyResult
from fluffle.survey.statistics import DataStatistics
from fluffle.table_model import TableModel
from fluffle.task import Progress, Site, Task, Trained, name_of_task
from fluffle.task_errors import blamed_on


@dataclass(frozen=True, slots=True, eq=False)
class TaskModel:
    """A task's model: `weights` are the tensors that travel, as `layout` says; `local` stay with a worker."""

    layout: Layout
    weights: Weights
    local: Weights


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRound:
    """The checked result of a round of local training; see `fluffle.task.Trained`.

    Of the layout's tensors, those from number `first_tensor` on may have changed.
    """

    weights: Weights
    local: Weights
    examples: int
    metrics: Mapping[str, float]
    first_tensor: int = 0


class CheckedTask:
    """Calls a user's task and checks what it returns; nothing else calls a task."""

    def __init__(self, task: Task, stop: threading.Event | None = None) -> None:
        """Wrap a task. A signal that sets `stop` interrupts a function of the task that is running."""
        self._task = task
        self._stop = stop or threading.Event()
        self._groups: Mapping[str, Group] = {}
        self._layout = Layout(())
        # Of the layout's tensors, this site trains those from this number on.
        self._first_tensor = 0

    @property
    def task(self) -> Task:
        """The task itself, for what only one kind of task can do."""
        return self._task

    def with_the_same_model(self) -> Self:
        """Return a task that shares this one's model and can be prepared with data of its own.

        Only for a task whose `prepare` replaces its data, and does not change them in place.
        """
        other = copy(self)
        other._task = copy(self._task)
        return other

    def model(self, seed: int = 0) -> TaskModel:
        """Build the model from a seed."""
        return self._described("initial_weights", self._call("initial_weights", seed))

    def load(self, path: Path) -> TaskModel:
        """Read the model from a file of the framework's own format."""
        return self._described("load", self._call("load", path))

    def save(self, weights: Weights, path: Path) -> None:
        """Write shared and local tensors in the framework's own format."""
        self._call("save", weights, path)

    def prepare(self, site: Site) -> int:
        """Load a site's training data and return its number of examples, at least 1."""
        if site.validation and not self.can_validate:
            raise TaskError(
                f"local_validation {site.validation:g} holds out data of this site, and the task has no "
                "method validate that evaluates on it: write one (ValidatingTask), or leave it out"
            )
        examples = _counted("prepare", self._call("prepare", site))
        if examples < 1:
            raise TaskError(f"prepare found {examples} examples of training data; at least 1 is needed")
        return examples

    def statistics(self) -> DataStatistics:
        """Return the statistics of the prepared data, for a survey; TaskError for a task that has none."""
        if not hasattr(self._task, "statistics"):
            raise TaskError(
                "the federation's survey asks for statistics of the data, and the task "
                f"{name_of_task(self._task)} has no method statistics(): give it one "
                "(fluffle.task.SurveyedTask), or leave --survey out at the aggregator"
            )
        found = self._call("statistics")
        if not isinstance(found, DataStatistics):
            raise TaskError(f"statistics must return a fluffle.survey.DataStatistics, not {_shown(found)}")
        return found

    def use_statistics(self, statistics: SurveyResult) -> None:
        """Let `evaluate` use the result of a survey, where the task can."""
        if hasattr(self._task, "use_statistics"):
            self._call("use_statistics", statistics)

    def train_last(self, share: float) -> Layout:
        """Let the task train its last layers alone, after `model` was called; return the layout of these.

        `share` is the largest part of the trained parameters, above 0 and at most 1. Raises TaskError when
        the task cannot do that, or when the last layer alone has more.
        """
        if not hasattr(self._task, "train_last"):
            raise TaskError(
                f"the task {type(self._task).__name__} cannot train a part of its model, since it has no "
                "method train_last: leave out --train-share, or make the task a KerasTask"
            )
        first, names = self._call("train_last", share), [spec.name for spec in self._layout.tensors]
        if first not in names:
            raise TaskError(
                f"train_last must return the name of a tensor that is sent, such as {names[-1]!r}, not "
                f"{_shown(first)}"
            )
        try:
            part = self._layout.tail(names.index(first))
        except LayoutError as error:
            raise TaskError(f"train_last returned {first!r}: {error}") from error
        self._first_tensor = names.index(first)
        return part

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> TrainedRound:
        """Train one round after `model` was called; `weights` are the shared and the local tensors."""
        trained = self._call("train", weights, plan, seed=seed, progress=progress)
        if not isinstance(trained, Trained):
            raise TaskError(f"train must return a fluffle.task.Trained, not {_shown(trained)}")
        arrays = _arrays("train", trained.weights)
        groups = {name: self._groups.get(name, "trained") for name in arrays}
        shared = {name: arrays[name] for name, group in groups.items() if group in {"trained", "statistic"}}
        local = {name: arrays[name] for name, group in groups.items() if group == "local"}
        try:
            self._layout.require_weights(shared)
        except LayoutError as error:
            raise TaskError(f"train returned other weights than initial_weights: {error}") from error
        if missing := {name for name, group in self._groups.items() if group == "local"} - local.keys():
            raise TaskError(f"train returned no weights for the local {some_of(missing)}")
        examples = _counted("train", trained.examples)
        metrics = checked_metrics("train", trained.metrics)
        return TrainedRound(shared, local, examples, metrics, self._first_tensor)

    @property
    def may_resize(self) -> bool:
        """Whether the task says how its learning rate follows the size of minibatches."""
        return hasattr(self._task, "learning_rate_power")

    def learning_rate_power(self) -> float | None:
        """Return how the learning rate follows the size of minibatches; None where the size is fixed.

        Also for a task that does not say it.
        """
        power = self._call("learning_rate_power") if self.may_resize else None
        if power is None or (isinstance(power, int | float) and 0 <= power <= 1):
            return power
        raise TaskError(f"learning_rate_power must return a number from 0 to 1, or None, not {_shown(power)}")

    def optimizer_state(self) -> Weights:
        """Return the optimizer's state after a round; empty for a task that keeps none."""
        if not self._keeps_optimizer:
            return {}
        return _arrays("optimizer_state", self._call("optimizer_state"))

    def restore_optimizer(self, state: Weights) -> None:
        """Let the next round continue from an earlier state, or from a fresh optimizer if it is empty."""
        if self._keeps_optimizer:
            self._call("restore_optimizer", state)

    def evaluate(self, weights: Weights) -> dict[str, float]:
        """Return the metrics of shared and local tensors on held-out data, each a number."""
        if not (checked := checked_metrics("evaluate", self._call("evaluate", weights))):
            raise TaskError("evaluate returned no metrics: at least one is needed, such as accuracy or loss")
        return checked

    @property
    def can_validate(self) -> bool:
        """Whether the task can evaluate on data that its site holds out."""
        return hasattr(self._task, "validate")

    def validate(self, weights: Weights) -> tuple[int, tuple[SiteMetric, ...]] | None:
        """Return the examples that the site holds out, and the metrics on them; None if it has none."""
        if not self.can_validate:
            return None
        found = self._call("validate", weights)
        return None if found is None else site_metrics(found)

    @property
    def _keeps_optimizer(self) -> bool:
        return all(hasattr(self._task, name) for name in ("optimizer_state", "restore_optimizer"))

    def _call(self, function: str, *arguments: object, **options: object) -> object:
        with blamed_on(function), interrupting(self._stop):
            result: object = getattr(self._task, function)(*arguments, **options)
            return result

    def _table(self) -> TableModel | None:
        """Return which columns the model takes; None for a model of no table."""
        if not isinstance(self._task, TaskOfTables):
            return None
        with blamed_on("table_model"):
            return self._task.table_model()

    def _described(self, function: str, weights: object) -> TaskModel:
        arrays = _arrays(function, weights)
        has_groups = getattr(self._task, "tensor_groups", None)
        self._groups = _groups(self._call("tensor_groups") if has_groups else {}, arrays)
        try:
            self._layout = Layout.of(arrays, self._groups, self._table())
        except LayoutError as error:
            raise TaskError(f"{function}: {error}") from error
        self._first_tensor = 0
        if not self._layout.size:
            raise TaskError(f"{function} returned no float tensor that is trained: there is nothing to train")
        shared = {spec.name: arrays[spec.name] for spec in self._layout.tensors}
        local = {name: array for name, array in arrays.items() if self._groups.get(name) == "local"}
        return TaskModel(self._layout, shared, local)


def checked_metrics(function: str, metrics: object) -> dict[str, float]:
    """Return metrics as numbers by name; each element of a vector, such as F1 by class, is "f1_score/0".

    Raises TaskError for a metric that is not a number, or that cannot be sent.
    """
    if not isinstance(metrics, Mapping):
        raise TaskError(f"{function} must return metrics as a dictionary of numbers, not {_shown(metrics)}")
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            numbers = np.asarray(value)
        except Exception:  # whatever an object's __array__ raises
            numbers = np.array(None)
        if numbers.dtype.kind not in "biuf":
            raise TaskError(f"{function}: the metric {name!r} must be a number, not {_shown(value)}")
        if numbers.ndim == 0:
            checked[name] = float(numbers)
        else:
            checked |= {f"{name}/{at}": float(each) for at, each in enumerate(numbers.reshape(-1))}
    if wrong := [name for name in checked if not is_metric_name(name)]:
        raise TaskError(
            f"{function}: a metric's name has 1 to {MAX_METRIC_NAME_LENGTH} printable characters, "
            f"not {wrong[0]!r}"
        )
    if len(checked) > MAX_METRICS:
        raise TaskError(
            f"{function} returned {len(checked)} metrics, and at most {MAX_METRICS} can be sent: average "
            "those by class (average='macro')"
        )
    return checked


def _counted(function: str, examples: object) -> int:
    if isinstance(examples, bool) or not isinstance(examples, int | np.integer):
        raise TaskError(f"{function} must return the number of examples as an int, not {_shown(examples)}")
    return int(examples)


def _arrays(function: str, weights: object) -> dict[str, NDArray[np.generic]]:
    if not isinstance(weights, Mapping):
        raise TaskError(f"{function} must return numpy arrays by name, not {_shown(weights)}")
    for name, array in weights.items():
        if not isinstance(name, str):
            raise TaskError(f"{function}: the name of a tensor must be text, not {_shown(name)}")
        if not isinstance(array, np.ndarray | np.generic):
            raise TaskError(f"{function}: the tensor {name!r} must be a numpy array, not {_shown(array)}")
    return {name: np.asarray(array) for name, array in weights.items()}


def _groups(groups: object, weights: Weights) -> Mapping[str, Group]:
    if not isinstance(groups, Mapping):
        raise TaskError(f"tensor_groups must return a group by tensor name, not {_shown(groups)}")
    if unknown := [str(name) for name in groups if name not in weights]:
        raise TaskError(f"tensor_groups names tensors that initial_weights does not: {some_of(unknown)}")
    for name, group in groups.items():
        if group not in GROUPS:
            raise TaskError(
                f"tensor_groups: the group of {name!r} must be one of {', '.join(GROUPS)}, not {group!r}"
            )
    return groups


def _shown(value: object) -> str:
    """Return the type of a value, and the value itself if it is short."""
    text = repr(value)
    return type(value).__name__ if len(text) > 40 or "\n" in text else f"{type(value).__name__} {text}"
