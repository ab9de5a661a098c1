"""Rounds that are trained together: the worker's own mathematics, and the same bits every time."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import Site, Task, load_task
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.memory import DEVICE_BYTES, Memory, needed_bytes
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.sites import Sites
from fluffle_worker.keras_task import (
    KerasModel,
    KerasTask,
    NotStackable,
    OptimizerState,
    RoundAtSite,
    import_keras,
)
from fluffle_worker.tasks import digits as ready_digits

# Both sum in float32, in another order: each of 30 steps may be off by some 1e-7 of its sums. Adam divides
# a gradient by its own size, so that the rounding of a small one weighs as much as that of a large one.
CLOSE = 2e-4
# So that the last minibatch is not full, and the sites differ in their number of steps.
SIZES = (33, 64, 90)


def settings_of(**given: Any) -> SimulateSettings:
    defaults = {"federation": "digits", "task": "digits", "max_updates": 24}
    return load_arguments(SimulateSettings, defaults | given)


def regression(site: Site) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(site.index)
    x = rng.normal(size=(SIZES[site.index], 6)).astype(np.float32)
    y = (x[:, :1] - 0.5 * x[:, 1:2] ** 2).astype(np.float32)
    return x, y, rng.uniform(0.5, 2, len(x)).astype(np.float32)


def model_with(optimizer: Callable[[Any], Any], *layers: str, **compiled: Any) -> Callable[[], KerasModel]:
    def build() -> KerasModel:
        keras = import_keras()
        kinds = keras.layers
        convolution = [kinds.Reshape((8, 1)), kinds.Conv1D(2, 3, name="conv"), kinds.Flatten()]
        middle: Mapping[str, Callable[[], Any]] = {
            "norm": kinds.BatchNormalization,
            "dropout": lambda: kinds.Dropout(0.3),
            "large": lambda: kinds.Dense(20_000),
            "conv": lambda: keras.Sequential(convolution),
        }
        penalty = keras.regularizers.L2(0.01)
        stack = [
            keras.layers.Dense(8, "tanh", kernel_regularizer=penalty),
            *(middle[one]() for one in layers),
        ]
        model = keras.Sequential([keras.Input((6,)), *stack, keras.layers.Dense(1)])
        model.compile(optimizer(keras.optimizers), **({"loss": "mse"} | compiled))
        return model

    return build


def task_with(optimizer: Callable[[Any], Any], *layers: str, **compiled: Any) -> KerasTask:
    return KerasTask(model_with(optimizer, *layers, **compiled), regression, lambda: regression(Site()))


def at_sites(task: KerasTask, count: int) -> tuple[CheckedTask, list[CheckedTask], Weights]:
    """Return the task, the same with the data of each site, and its first weights."""
    checked = CheckedTask(task)
    model = checked.model(0)
    prepared = [checked.with_the_same_model() for _ in range(count)]
    for index, each in enumerate(prepared):
        each.prepare(Site(index=index, count=count, split="iid"))
    return checked, prepared, {**model.weights, **model.local}


def keras_tasks(prepared: list[CheckedTask]) -> list[KerasTask]:
    return [each.task for each in prepared if isinstance(each.task, KerasTask)]


OPTIMIZERS: Mapping[str, Callable[[Any], Any]] = {
    "SGD with momentum": lambda kinds: kinds.SGD(0.05, momentum=0.9, nesterov=True),
    "Adam": lambda kinds: kinds.Adam(0.01),
    "AdamW": lambda kinds: kinds.AdamW(0.01, weight_decay=0.1),
    "RMSprop": lambda kinds: kinds.RMSprop(0.01),
    "Adagrad": lambda kinds: kinds.Adagrad(0.05),
}
PLANS: Mapping[str, Plan] = {
    "one epoch": Plan(),
    "two epochs": Plan(local_epochs=2, batch_size=16),
    "steps over several passes": Plan(local_steps=7, learning_rate=0.03, learning_rate_scale=0.5),
    "pulled to the base": Plan(proximal_mu=0.5),
}


def require_the_same_rounds(task: KerasTask, count: int, plan: Plan) -> None:
    """Train two rounds at each site in both ways, the second after the first."""
    checked, prepared, weights = at_sites(task, count)
    [own] = keras_tasks([checked])
    stacked = own.stacked(keras_tasks(prepared))
    starts: list[tuple[Weights, OptimizerState | None]] = [(weights, None)] * count
    states: list[Weights] = [{}] * count

    for seed in (5, 6):
        rounds = [RoundAtSite(start, at, seed, state) for at, (start, state) in enumerate(starts)]
        found = stacked.train(rounds, plan)
        for at, (start, _) in enumerate(starts):
            prepared[at].restore_optimizer(states[at])
            alone = prepared[at].train(start, plan, seed=seed, progress=lambda _done, _total: None)
            states[at] = prepared[at].optimizer_state()
            together, _ = found[at]
            assert together.examples == alone.examples
            assert together.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-3)
            expected = np.concatenate([alone.weights[name].reshape(-1) for name in weights])
            differs = np.concatenate([each.reshape(-1) for each in together.weights.values()]) - expected
            before = np.concatenate([start[name].reshape(-1) for name in weights])
            assert np.linalg.norm(differs) <= CLOSE * np.linalg.norm(expected - before)
        starts = [(one.weights, state if plan.keep_optimizer else None) for one, state in found]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_rounds_of_the_digits_give_the_same_together_as_one_by_one(plan: Plan) -> None:
    task = load_task("digits")
    assert isinstance(task, KerasTask)

    require_the_same_rounds(task, 5, plan)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weighted_regression_with_a_penalty_gives_the_same_together_as_one_by_one(name: str) -> None:
    require_the_same_rounds(task_with(OPTIMIZERS[name]), len(SIZES), Plan(local_epochs=2))


@pytest.mark.parametrize("name", ["SGD with momentum", "Adam"])
def test_each_round_goes_on_from_its_own_optimizer_where_the_plan_keeps_it(name: str) -> None:
    require_the_same_rounds(
        task_with(OPTIMIZERS[name]), len(SIZES), Plan(local_epochs=2, keep_optimizer=True)
    )


def test_a_round_does_not_depend_on_the_others_that_are_trained_with_it() -> None:
    task = load_task("digits")
    assert isinstance(task, KerasTask)
    _, prepared, weights = at_sites(task, 5)
    stacked = task.stacked(keras_tasks(prepared))
    others = {name: np.multiply(array, 1.5, dtype=np.float32) for name, array in weights.items()}

    def trained(*rounds: RoundAtSite) -> Weights:
        return stacked.train(rounds, Plan())[0][0].weights

    mine = RoundAtSite(weights, 0, 1)
    among_some = trained(mine, RoundAtSite(weights, 1, 2))
    among_others = trained(mine, *(RoundAtSite(others, at, 3 + at) for at in range(1, 4)))

    for name in weights:
        np.testing.assert_array_equal(among_some[name], among_others[name])


def own_loss(y: Any, predicted: Any) -> Any:
    """Return a loss that is not the mean over the examples."""
    ops = import_keras().ops
    return ops.mean(ops.square(y - predicted)) + ops.max(ops.abs(y - predicted))


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (task_with(lambda kinds: kinds.SGD(0.05), "norm"), "BatchNormalization"),
        (task_with(lambda kinds: kinds.SGD(0.05), "dropout"), "Dropout"),
        (task_with(lambda kinds: kinds.SGD(0.05), "large"), "200,057 trained weights"),
        (task_with(lambda kinds: kinds.SGD(0.05), "conv"), "convolution of the layer conv"),
        (task_with(lambda kinds: kinds.SGD(0.05, global_clipnorm=1.0)), "global_clipnorm"),
        (task_with(lambda kinds: kinds.Lamb(0.05)), "Lamb"),
        (task_with(lambda kinds: kinds.SGD(0.05), loss=own_loss), "ends .* away"),
    ],
)
def test_what_cannot_be_trained_together_is_trained_one_by_one_and_the_log_says_why(
    task: KerasTask, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(task="own:task", clients=3, max_updates=4, target=None)
    versions: list[ModelVersion] = []

    federation = SimulatedFederation(settings, task, versions.append)
    federation.run()

    assert versions[-1].updates >= 4
    [line] = [each.getMessage() for each in caplog.records if "one by one" in each.getMessage()]
    assert re.search(says, line)


PROGRAM = """
import sys, hashlib
from fluffle.settings import load_arguments
from fluffle.task import load_task
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
given = {"task": "digits", "clients": 40, "buffer_size": 4, "max_updates": 120, "evaluate_every": 10}
versions = []
settings = load_arguments(SimulateSettings, given | {"seed": int(sys.argv[1])})
SimulatedFederation(settings, load_task("digits"), versions.append).run()
print("bits", hashlib.sha256(versions[-1].vector.tobytes()).hexdigest(), versions[-1].committed_at)
"""


def bits_with(threads: int) -> str:
    environment = os.environ | {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", PROGRAM, "3"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return next(line for line in ended.stdout.splitlines() if line.startswith("bits"))


def test_the_same_settings_give_the_same_bits_with_any_number_of_threads() -> None:
    assert bits_with(1) == bits_with(4)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_ready_tasks_data_is_split_as_its_workers_split_it(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, KerasTask)
    settings = settings_of(task=name, clients=6, seed=3)

    sites = Sites(settings, task)

    assert isinstance(sites.task, KerasTask)
    for device in range(6):
        here, there = sites.task.train_data(sites.of(device)), task.train_data(settings.site(device))
        assert isinstance(here, tuple)
        assert isinstance(there, tuple)
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_more_devices_than_the_data_has_parts_for_share_the_parts(caplog: pytest.LogCaptureFixture) -> None:
    task: Task = load_task("digits")

    sites = Sites(settings_of(clients=1000), task)

    assert sites.count == 71
    assert sites.of(0) == sites.of(71)
    assert "several share one" in caplog.text


def test_other_kinds_of_tasks_are_refused_by_what_trains_together() -> None:
    task = task_with(lambda kinds: kinds.SGD(0.1))
    task.initial_weights(0)

    with pytest.raises(NotStackable, match="arrays"):
        task.stacked([task])


def test_a_site_with_labels_that_the_model_lacks_is_refused_before_its_rounds_are_trained_together() -> None:
    digits = load_task("digits")
    assert isinstance(digits, KerasTask)

    def train_data(site: Site) -> object:
        images, labels = ready_digits.train_data(site)
        return images, labels + site.index

    checked, prepared, _ = at_sites(digits.with_train_data(train_data), 2)
    [own] = keras_tasks([checked])

    with pytest.raises(TaskError, match="labels that the model has no output for, such as 10"):
        own.stacked(keras_tasks(prepared))


def test_more_memory_than_there_is_is_refused_with_the_numbers() -> None:
    one_mb = {"model_bytes": 1_000_000, "optimizer_bytes": 2_000_000, "local_bytes": 0}
    needed = needed_bytes(clients=1000, plan=Plan(keep_optimizer=True), **one_mb)
    synchronous = needed_bytes(clients=1000, plan=Plan(one_update_per_version=True), **one_mb)

    assert needed == 1000 * (4_000_000 + DEVICE_BYTES)
    assert synchronous == 1000 * (1_000_000 + DEVICE_BYTES) + 1_000_000
    Memory(None).require(needed, clients=1000, model_bytes=1_000_000)
    Memory(needed).require(needed, clients=1000, model_bytes=1_000_000)
    Memory(2 * needed, runs=2).require(needed, clients=1000, model_bytes=1_000_000)
    with pytest.raises(
        ConfigError, match=r"1,000 clients .* 1\.0 MB may need 4\.0 GB .* 3\.0 GB are available: "
    ):
        Memory(3_000_000_000).require(needed, clients=1000, model_bytes=1_000_000)
    with pytest.raises(ConfigError, match=r"2\.0 GB are available for each of the 2 runs .* at a time: "):
        Memory(needed, runs=2).require(needed, clients=1000, model_bytes=1_000_000)
