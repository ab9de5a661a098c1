"""Each feature of Keras in the table of docs/models.md, trained along the whole way of a round."""

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from features.feature import EXAMPLES, Feature
from features.table import FEATURES

from fluffle.checked_task import CheckedTask, TaskModel, TrainedRound
from fluffle.errors import TaskError
from fluffle.model import Group, Weights
from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask, import_keras
from fluffle_worker.keras_task.backend import uses_tensorflow


def silent(done: int, total: int) -> None:
    """Report nothing."""


def a_task(feature: Feature) -> KerasTask:
    return KerasTask(
        lambda: feature.build(import_keras()), lambda _: feature.data(), feature.data, local=feature.local
    )


def group_of(feature: Feature, name: str) -> Group:
    return next((group for pattern, group in feature.groups.items() if fnmatchcase(name, pattern)), "trained")


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name in after if not np.array_equal(before[name], after[name])}


def train(task: CheckedTask, feature: Feature, model: TaskModel, weights: Weights, seed: int) -> TrainedRound:
    trained = task.train(weights, feature.plan, seed=seed, progress=silent)
    for array in [*trained.weights.values(), *trained.local.values()]:
        assert np.isfinite(array.astype(np.float64)).all()
    assert all(np.isfinite(value) for value in trained.metrics.values())
    return trained


def begun(feature: Feature) -> CheckedTask:
    task = CheckedTask(a_task(feature))
    task.model(seed=3)
    task.prepare(Site())
    return task


@pytest.mark.parametrize("name", FEATURES)
def test_a_model_with_this_feature_trains_travels_and_comes_back_from_a_file(
    name: str, tmp_path: Path
) -> None:
    feature = FEATURES[name]
    if feature.refused and not uses_tensorflow():
        with pytest.raises(TaskError, match=feature.refused):
            begun(feature)
        return
    own = a_task(feature)
    task = CheckedTask(own)
    model = task.model(seed=3)
    groups = own.tensor_groups()
    start = {**model.weights, **model.local}

    examples = task.prepare(Site())
    first = train(task, feature, model, start, seed=1)
    again = train(task, feature, model, start, seed=1)
    second = train(task, feature, model, {**first.weights, **first.local}, seed=2)
    result = {**second.weights, **second.local}
    restored = model.layout.restore(model.layout.flatten(second.weights))
    before, after = task.evaluate(start), task.evaluate({**restored, **second.local})

    assert groups == {name: group_of(feature, name) for name in groups}
    assert examples == first.examples == EXAMPLES
    assert changed({**first.weights, **first.local}, {**again.weights, **again.local}) == set()
    still = {name for name in start if any(fnmatchcase(name, pattern) for pattern in feature.constant)}
    assert changed(start, {**first.weights, **first.local}) == set(start) - still
    assert changed({**first.weights, **first.local}, result) == set(start) - still
    assert changed(second.weights, restored) == set()
    assert after["loss"] < before["loss"]
    assert np.isfinite(list(after.values())).all()

    task.save(result, tmp_path / "model.keras")
    other = CheckedTask(a_task(feature))
    loaded = other.load(tmp_path / "model.keras")

    assert changed(result, {**loaded.weights, **loaded.local}) == set()
    assert loaded.layout == model.layout
    assert other.evaluate({**loaded.weights, **loaded.local}) == pytest.approx(after, rel=0.02, abs=1e-3)
