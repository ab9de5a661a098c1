"""A kept optimizer and the plan's learning rate: what goes on from round to round, and what begins anew."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_version, values_of
from fake_broker import FakeServer
from numpy.typing import NDArray
from working import Scripted, a_federation, a_worker, publish_versions, sent_updates

from fluffle.errors import LayoutError, TaskError
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.task import Progress, Site, Trained
from fluffle_worker import site_state
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.site_state import OPTIMIZER

X: NDArray[np.float32] = np.full((1, 1), 3.0, np.float32)
Y: NDArray[np.float32] = np.full((1, 1), 12.0, np.float32)
START: Mapping[str, NDArray[np.generic]] = {"dense/kernel": np.full((1, 1), 2.0, np.float32)}
KEEP = Plan(keep_optimizer=True)


def silent(done: int, total: int) -> None:
    """Report nothing."""


def a_line(optimizer: str = "momentum", rate: float = 0.01) -> KerasTask:
    """A model of one weight: w * 3 should be 12, with squared error; the gradient is 6(3w - 12)."""

    def build_model() -> KerasModel:
        keras = import_keras()
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        made = {
            "momentum": lambda: keras.optimizers.SGD(rate, momentum=0.5),
            "adam": lambda: keras.optimizers.Adam(rate),
            "schedule": lambda: keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(rate, 1, 0.5)
            ),
        }[optimizer]()
        model.compile(made, loss="mean_squared_error")
        return model

    task = KerasTask(build_model, lambda _: (X, Y), lambda: (X, Y))
    task.initial_weights(0)
    task.prepare(Site())
    return task


def train(task: KerasTask, plan: Plan) -> float:
    trained: Trained = task.train(START, plan, seed=0, progress=silent)
    return float(trained.weights["dense/kernel"].item())


def test_a_kept_optimizer_goes_on_with_its_moments_and_a_fresh_one_does_not() -> None:
    fresh, kept = a_line(), a_line()

    # The first step is 0.01 * 36 = 0.36; the second has half of it in addition.
    assert [train(fresh, Plan()) for _ in range(2)] == pytest.approx([2.36, 2.36], abs=1e-5)
    assert [train(kept, KEEP) for _ in range(2)] == pytest.approx([2.36, 2.54], abs=1e-5)


def test_the_moments_of_a_kept_optimizer_can_be_restored_in_another_process() -> None:
    before, after = a_line("adam"), a_line("adam")
    train(before, KEEP)

    after.restore_optimizer(before.optimizer_state())

    assert train(after, KEEP) == train(before, KEEP)
    after.restore_optimizer({})
    assert train(after, KEEP) == train(a_line("adam"), Plan())


def test_the_state_of_another_optimizer_is_refused() -> None:
    with pytest.raises(LayoutError):
        a_line("adam").restore_optimizer(a_line("momentum").optimizer_state())


def test_the_plan_scales_the_rate_of_the_model_or_its_own_in_each_round() -> None:
    task = a_line()

    half = train(task, Plan(learning_rate_scale=0.5))
    own = train(task, Plan(learning_rate=0.02, learning_rate_scale=0.5))
    kept = train(a_line(), replace(KEEP, learning_rate_scale=0.5))
    after = train(task, Plan())

    assert [half, own, kept, after] == pytest.approx([2.18, 2.36, 2.18, 2.36], abs=1e-5)


def test_a_rate_of_the_plan_cannot_replace_the_models_own_schedule() -> None:
    task = a_line("schedule")

    assert train(task, Plan()) == pytest.approx(2.36, abs=1e-5)
    for plan in (Plan(learning_rate=0.5), Plan(learning_rate_scale=0.5)):
        with pytest.raises(TaskError, match="cannot replace the schedule of the model's own optimizer"):
            train(task, plan)


def test_the_models_own_schedule_goes_on_with_a_kept_optimizer() -> None:
    task = a_line("schedule")

    assert [train(task, KEEP) for _ in range(3)] == pytest.approx([2.36, 2.18, 2.09], abs=1e-5)


def version(number: int, task: KerasTask, *, finished: str = "") -> ModelVersion:
    layout = Layout.of(task.initial_weights(0))
    return a_version(number, values=[2.0], layout=layout, plan=KEEP, finished=finished)


def work(task: KerasTask, folder: Path, *, rounds: int) -> list[float]:
    """Let a worker send so many updates from one version; return what each would have moved the weight by."""
    server = a_federation(version(0, task))
    folder.mkdir(exist_ok=True)

    def script(served: FakeServer, count: int) -> None:
        if count == rounds:
            publish_versions(served, version(1000, task, finished="enough"))

    worker = a_worker(task, folder)
    task.prepare(Site())
    worker.work(lambda: Scripted(server, script))
    return [value for update in sent_updates(server) for value in values_of(update.vector)]


def test_a_worker_keeps_its_moments_over_a_restart_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every round writes them, on a slow disk too.
    monkeypatch.setattr(site_state, "QUICK_S", 3600.0)
    in_one_go = work(a_line(), tmp_path / "whole", rounds=3)

    before = work(a_line(), tmp_path / "parts", rounds=2)
    after = work(a_line(), tmp_path / "parts", rounds=1)

    assert in_one_go == pytest.approx([0.36, 0.54, 0.63], abs=1e-5)
    assert [*before, *after] == in_one_go
    assert (tmp_path / "parts" / OPTIMIZER).exists()


def test_moments_of_a_round_that_gave_nan_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rounds = a_line(), itertools.count(1)
    train_well = task.train

    def train_badly_once(weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        trained = train_well(weights, plan, seed=seed, progress=progress)
        if next(rounds) != 2:
            return trained
        return replace(trained, weights={"dense/kernel": np.full((1, 1), np.nan, np.float32)})

    monkeypatch.setattr(task, "train", train_badly_once)

    assert work(task, tmp_path, rounds=2) == pytest.approx([0.36, 0.54], abs=1e-5)
