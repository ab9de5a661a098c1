"""Statistics, frozen and local tensors on their way from a task to its worker's folder and the wire."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import a_version, values_of
from fake_broker import FakeServer
from tasks.grouped_task import FourGroups
from working import Scripted, a_federation, a_worker, publish_versions, sent_updates

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, LayoutError, TaskError
from fluffle.record import ModelVersion
from fluffle.task import Trained
from fluffle.wire import encode_update
from fluffle_worker.site_state import read_local_weights


def version(number: int, *, task: FourGroups | None = None, finished: str = "") -> ModelVersion:
    layout = CheckedTask(task or FourGroups()).model().layout
    record = a_version(number, values=[5.0, 5.0], layout=layout, finished=finished)
    return replace(record, statistics=np.full(2, 0.5, np.float32), integers=bytes(8))


def work(server: FakeServer, task: Any, folder: Path, *, rounds: int) -> None:
    """Let a worker train until it has sent so many updates and the federation ends."""

    def script(served: FakeServer, count: int) -> None:
        if count == rounds:
            publish_versions(served, version(1000, finished="enough"))

    worker = a_worker(task, folder)
    worker.work(lambda: Scripted(server, script))


def test_an_update_carries_the_delta_of_trained_tensors_and_the_values_of_statistics(tmp_path: Path) -> None:
    server = a_federation(version(0))

    work(server, FourGroups(), tmp_path, rounds=1)

    [update] = sent_updates(server)
    assert values_of(update.vector) == [1.0, 1.0]
    assert update.statistics.tolist() == [1.0, 1.0]
    assert update.integers == (1).to_bytes(8, "little")


def test_frozen_tensors_are_neither_sent_nor_given_to_the_task(tmp_path: Path) -> None:
    server, task = a_federation(version(0)), FourGroups()

    work(server, task, tmp_path, rounds=1)

    assert set(task.given[0]) == {"w", "mean", "head", "count"}
    # The frozen base alone would be 4,000 bytes.
    assert len(encode_update(sent_updates(server)[0])) < 1_000


def test_a_worker_with_another_frozen_base_is_told_so(tmp_path: Path) -> None:
    other = FourGroups()
    other.base = 8.0

    with pytest.raises(LayoutError, match="load the same pretrained weights in build_model at every site"):
        work(a_federation(version(0)), other, tmp_path, rounds=1)


def test_local_tensors_stay_in_the_workers_folder_from_round_to_round_and_over_restarts(
    tmp_path: Path,
) -> None:
    first, second = FourGroups(), FourGroups()

    work(a_federation(version(0)), first, tmp_path, rounds=2)
    work(a_federation(version(0)), second, tmp_path, rounds=1)

    assert [given["head"] for given in [*first.given, *second.given]] == [0.0, 1.0, 2.0]
    head = read_local_weights(tmp_path, {"head": np.zeros(2, np.float32)})["head"]
    assert head.tolist() == [3.0, 3.0]


def test_the_local_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    work(a_federation(version(0)), FourGroups(), tmp_path, rounds=1)

    with pytest.raises(ConfigError, match=r"head float32\[3\] .* delete the file to start with fresh ones"):
        read_local_weights(tmp_path, {"head": np.zeros(3, np.float32)})


class Diverging(FourGroups):
    """Gives NaN in its first two rounds."""

    def train(self, weights: Any, plan: Any, **rest: Any) -> Trained:
        trained = super().train(weights, plan, **rest)
        if len(self.given) > 2:
            return trained
        poisoned = {**trained.weights, "mean": np.full(2, np.nan, np.float32)}
        return replace(trained, weights=poisoned, metrics={"loss": float("nan")})


def test_a_vector_that_is_not_finite_is_not_sent_and_the_warning_names_tensor_and_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, task = a_federation(version(0)), Diverging()

    work(server, task, tmp_path, rounds=1)

    [update] = sent_updates(server)
    assert update.statistics.tolist() == [1.0, 1.0]
    assert len(task.given) == 3
    # What the rounds that diverged made of the head is gone with them.
    assert [given["head"] for given in task.given] == [0.0, 0.0, 0.0]
    warnings = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "NaN or infinite values in mean, and loss is not finite" in warnings[0]


class NoExamples(FourGroups):
    """Sees no examples in its first round."""

    def train(self, weights: Any, plan: Any, **rest: Any) -> Trained:
        trained = super().train(weights, plan, **rest)
        return trained if len(self.given) > 1 else replace(trained, examples=0)


def test_an_update_of_no_examples_is_not_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = a_federation(version(0))

    work(server, NoExamples(), tmp_path, rounds=1)

    assert [update.examples for update in sent_updates(server)] == [10]
    assert "training saw no examples" in caplog.text


def with_groups(groups: object) -> FourGroups:
    task = FourGroups()
    vars(task)["tensor_groups"] = lambda: groups
    return task


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([("w", "local")], "tensor_groups must return a group by tensor name, not list"),
        ({"x": "frozen"}, "tensor_groups names tensors that initial_weights does not: x"),
        ({"w": "locked"}, "the group of 'w' must be one of trained, statistic, frozen, local, not 'locked'"),
        (dict.fromkeys(("w", "mean", "head", "base"), "frozen"), "there is nothing to train"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups: object, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        CheckedTask(with_groups(groups)).model()


class Forgetful(FourGroups):
    """Returns other tensors than it was given."""

    def __init__(self, changed: Mapping[str, Any]) -> None:
        super().__init__()
        self.changed = changed

    def train(self, weights: Any, plan: Any, **rest: Any) -> Trained:
        trained = super().train(weights, plan, **rest)
        kept = {
            name: array for name, array in {**trained.weights, **self.changed}.items() if array is not None
        }
        return replace(trained, weights=kept)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"w": None}, "other weights than initial_weights: the weights lack w"),
        ({"w": np.zeros(3, np.float32)}, r"w float32\[2\] where these weights have w float32\[3\]"),
        ({"extra": np.zeros(1)}, "weights: the model has no extra"),
        ({"head": None}, "no weights for the local head"),
        ({"w": [1.0, 2.0]}, r"the tensor 'w' must be a numpy array, not list \[1.0, 2.0\]"),
    ],
)
def test_a_round_that_returns_other_tensors_is_a_task_error(
    changed: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=said):
        work(a_federation(version(0)), Forgetful(changed), tmp_path, rounds=1)
