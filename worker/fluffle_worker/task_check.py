"""Trying a task without a broker: each function checks one thing that a federation needs from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fluffle.checked_task import CheckedTask, TaskModel
from fluffle.errors import LayoutError, NoHeldOutData, TaskError
from fluffle.model import GROUPS, FlatWeights, Group, Weights, some_of
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.task import Progress
from fluffle.update import UpdateId
from fluffle_worker.round import TrainedUpdate, train_round


@dataclass(frozen=True, slots=True)
class GroupSize:
    """How many tensors and parameters a group has, and the bytes of them in one float32 update."""

    group: Group
    tensors: int
    parameters: int
    size_bytes: int


def build_twice(task: CheckedTask, seed: int) -> TaskModel:
    """Build the model; raises TaskError when building it again from the same seed gives other weights."""
    first, again = task.model(seed), task.model(seed)
    if difference := first.layout.difference(again.layout, whose="the first one"):
        raise TaskError(f"initial_weights gave two models from one seed: {difference}")
    if changed := changed_tensors(all_weights(first), all_weights(again)):
        raise TaskError(
            f"initial_weights gave other values for {some_of(changed)} when it was called again "
            f"with the seed {seed}: draw random numbers from the seed only"
        )
    return again


def sizes_of(model: TaskModel) -> list[GroupSize]:
    """Return the sizes of the groups that the model has."""
    layout, frozen = model.layout, model.layout.frozen
    travelling = {
        "trained": 4 * layout.size,
        "statistic": layout.beside_vector_size_bytes,
    }
    sizes = [
        GroupSize(
            group,
            sum(spec.group == group for spec in layout.tensors),
            sum(spec.size for spec in layout.tensors if spec.group == group),
            travelling.get(group, 0),
        )
        for group in GROUPS[:2]
    ]
    if frozen:
        sizes.append(GroupSize("frozen", frozen.tensors, frozen.parameters, 0))
    local = sum(array.size for array in model.local.values())
    sizes.append(GroupSize("local", len(model.local), local, 0))
    return [size for size in sizes if size.tensors]


def train_once(
    task: CheckedTask, model: TaskModel, plan: Plan, *, seed: int, progress: Progress
) -> TrainedUpdate:
    """Train one round as a worker does; raises TaskError when its update could not be sent."""
    flat = model.layout.flatten(model.weights)
    version = ModelVersion(
        federation="check",
        term=1,
        version=0,
        parent="",
        terms=(),
        layout=model.layout,
        plan=plan,
        strategy="",
        vector=flat.vector,
        statistics=flat.statistics,
        integers=flat.integers,
    )
    trained = train_round(
        task,
        version,
        model.local,
        update_id=UpdateId("check", "check", 1),
        seed=seed,
        progress=progress,
    )
    if trained.unusable:
        raise TaskError(trained.unusable)
    return trained


def weights_after(model: TaskModel, trained: TrainedUpdate) -> Weights:
    """Return the shared and the local tensors after a round whose update is a delta."""
    start = model.layout.flatten(model.weights).vector
    update = trained.update
    shared = model.layout.restore(FlatWeights(start + trained.vector, update.statistics, update.integers))
    return {**shared, **trained.local}


def evaluate_if_possible(task: CheckedTask, weights: Weights) -> Mapping[str, float] | None:
    """Return the metrics on held-out data, None if the task has none: a worker's task needs none."""
    try:
        return task.evaluate(weights)
    except NoHeldOutData:
        return None


def require_finite(metrics: Mapping[str, float] | None) -> None:
    """Raise TaskError for metrics on held-out data that are NaN or infinite: they would end a federation."""
    if bad := [f"{name} {value}" for name, value in (metrics or {}).items() if not math.isfinite(value)]:
        raise TaskError(
            f"evaluate returned {some_of(bad)} after the round, "
            "and the training gave finite weights: the held-out data may hold missing values"
        )


def save_and_load(task: CheckedTask, model: TaskModel, weights: Weights, path: Path) -> int:
    """Write the model to a file and read it again; return the size of the file in bytes.

    Raises TaskError when the model that was read differs.
    """
    task.save(weights, path)
    if not path.is_file():
        raise TaskError(f"save wrote no file to its path, {path.name}")
    loaded = task.load(path)
    try:
        model.layout.require(loaded.layout, whose="the saved one")
    except LayoutError as error:
        raise TaskError(f"load reads another model than save wrote: {error}") from error
    if changed := changed_tensors(weights, all_weights(loaded)):
        raise TaskError(f"load reads other values than save wrote in {some_of(changed)}")
    return path.stat().st_size


def all_weights(model: TaskModel) -> Weights:
    """Return the shared and the local tensors of a model."""
    return {**model.weights, **model.local}


def unmoved_tensors(model: TaskModel, result: Weights) -> list[str]:
    """Return the names of the trained tensors that a round did not change."""
    changed = set(changed_tensors(all_weights(model), result))
    return [
        spec.name for spec in model.layout.tensors if spec.group == "trained" and spec.name not in changed
    ]


def changed_tensors(before: Weights, after: Weights) -> list[str]:
    """Return the names of the tensors whose bytes differ."""
    return [name for name in before if before[name].tobytes() != after[name].tobytes()]
