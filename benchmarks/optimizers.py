"""Whether workers should keep their optimizer's state between rounds, and how the learning rate should go.

    python -m benchmarks.optimizers

Federations of Keras models on a virtual clock (FedBuff, K=4, polynomial discount; five sites whose labels
differ, of paces from 1 to 4): a dense network with Adam on the digits, an LSTM with Adam that sees 3
minibatches a round (the digits' rows as a sequence), and a regression with Adam on diabetes. `fresh` begins
each round with a new optimizer, `kept` goes on with the worker's own. `left` is the mean of the last fifth of
the evaluations: the error rate, for diabetes the root mean squared error; less is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

from benchmarks.measuring import Report, compare_over_seeds, spread_of
from benchmarks.virtual import Course, VirtualFederation
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_aggregator.schedules import parse_schedule
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings
from fluffle_worker.keras_task import KerasTask, import_keras

if TYPE_CHECKING:
    import keras

Data = tuple[NDArray[np.float32], NDArray[np.float32]]

TASKS = ("digits", "sequences", "diabetes")
OPTIMIZERS = ("fresh", "kept")
VERSIONS = 100
SCHEDULES = ("constant", f"cosine:{VERSIONS}:0.05", f"step:{VERSIONS // 3}:0.5", "plateau:5:0.5")
PACES = (1.0, 1.4, 2.0, 2.8, 4.0)
BUFFER_SIZE = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    task: str
    optimizer: str
    schedule: str
    seed: int


def data_of(task: str) -> tuple[Data, Data]:
    """Return the training data in the order of their targets, and what is held out."""
    if task == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        x, y = x / x.std(axis=0), (y - y.mean()) / y.std()
    else:
        x, y = load_digits(return_X_y=True)
        x = x / 16
    if task == "sequences":
        x = x.reshape(-1, 8, 8)
    held_out = np.arange(len(y)) % 5 == 0
    order = np.argsort(y[~held_out], kind="stable")
    training = x[~held_out][order].astype(np.float32), y[~held_out][order].astype(np.float32)
    return training, (x[held_out].astype(np.float32), y[held_out].astype(np.float32))


def build(task: str) -> keras.Model:
    """Return the compiled model of a task."""
    k = import_keras()
    if task == "diabetes":
        layers = [k.Input((10,)), k.layers.Dense(16, "relu"), k.layers.Dense(1)]
        loss, metrics = "mse", [k.metrics.RootMeanSquaredError(name="rmse")]
    else:
        body = k.layers.LSTM(32) if task == "sequences" else k.layers.Dense(32, "relu")
        layers = [k.Input((8, 8) if task == "sequences" else (64,)), body, k.layers.Dense(10, "softmax")]
        loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
    model = k.Sequential(layers)
    model.compile(k.optimizers.Adam(0.01 if task == "sequences" else 0.003), loss=loss, metrics=metrics)
    return model


def a_task(case: Case) -> KerasTask:
    """Return a task whose sites have mostly neighbouring targets, drawn from the seed."""
    (x, y), held_out = data_of(case.task)
    rng = np.random.default_rng(case.seed)
    rows = np.argsort(np.arange(len(y)) + len(y) / 4 * rng.standard_normal(len(y)))

    def train_data(site: Site) -> Data:
        mine = np.array_split(rows, site.count)[site.index]
        return x[mine], y[mine]

    return KerasTask(lambda: build(case.task), train_data, lambda: held_out)


def play(case: Case) -> float:
    """Run a federation, and return how far from right its model is at the end."""
    tasks = [a_task(case) for _ in PACES]
    for index, task in enumerate(tasks):
        task.prepare(Site(index=index, count=len(tasks)))
    course = Course(
        strategy=FedBuffSettings(buffer_size=BUFFER_SIZE, weigh_by="none").make(),
        plan=Plan(
            local_steps=3 if case.task == "sequences" else None,
            batch_size=32,
            keep_optimizer=case.optimizer == "kept",
            updates_per_version=BUFFER_SIZE,
        ),
        round_s=PACES,
        updates=VERSIONS * BUFFER_SIZE,
        seed=case.seed,
        schedule=parse_schedule(case.schedule),
    )
    points = VirtualFederation(course, tasks, a_task(case)).run()
    last = points[-max(1, len(points) // 5) :]
    return mean(point.cost for point in last)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    compare_over_seeds(
        Report("optimizers", "optimizers: fresh or kept, and schedules of the learning rate"),
        [
            {"task": task, "optimizer": optimizer, "schedule": schedule}
            for task, optimizer, schedule in product(TASKS, OPTIMIZERS, SCHEDULES)
        ],
        Case,
        play,
        lambda left: {"left": mean(left), "spread": spread_of(left)},
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
