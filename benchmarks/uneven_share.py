"""What `--train-share` does for the slowest of four workers: the time of its rounds, and the final accuracy.

    python -m benchmarks.uneven_share

A convolutional network, with and without BatchNormalization, on the digits, whose labels differ among the
sites (dirichlet:0.5), on a virtual clock. Rounds of three workers take a second, and those of the slowest 1.8
seconds if it trains the whole model. With a share it needs the part of that time that a round with this share
takes of one without on this machine, in seconds of its cores. `whole` and `part` are federations in which the
slowest does the one or the other, and `without` one in which it does not take part. All run for a minute of
this clock. `last` is the mean accuracy of the last fifth of the evaluations, in percent.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Report, compare_over_seeds, spread_of
from benchmarks.virtual import Course, VirtualFederation
from fluffle.checked_task import CheckedTask
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_aggregator.strategies.registry import StrategySettings
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.tasks import digits

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

WORKERS, SLOW, SHARE = 4, 1.8, 0.7
ENDS_S, EVALUATIONS = 60, 30
TURNS = 20
PLAN = Plan(batch_size=32, keep_optimizer=True)
MODELS, SIDES = ("plain", "batch_norm"), ("whole", "part", "without")


def build_model(normalized: bool) -> KerasModel:
    """Return two convolutions, which take most of the time, and two dense layers with most of the weights."""
    keras = import_keras()
    layers = keras.layers
    model = [keras.Input((64,)), layers.Reshape((8, 8, 1))]
    for filters in (32, 64):
        normalization = [layers.BatchNormalization()] if normalized else []
        model += [layers.Conv2D(filters, 3, padding="same"), *normalization, layers.ReLU()]
    head = layers.Dense(32, activation="relu"), layers.Dense(10, activation="softmax")
    built = keras.Sequential([*model, layers.MaxPooling2D(), layers.Flatten(), *head])
    built.compile(keras.optimizers.Adam(0.001), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return built


def a_task(model: str) -> KerasTask:
    """Return the digits with one of these models."""
    build = partial(build_model, model == "batch_norm")
    return KerasTask(build, digits.train_data, digits.eval_data)


def a_site(index: int, seed: int) -> Site:
    """Return a worker's part of the images, whose labels differ from the others'."""
    return Site(index=index, count=WORKERS, split="dirichlet:0.5", seed=seed)


@cache
def part_of_a_round(of_model: str) -> float:
    """Return the seconds of a round with the share over those without: the median of some turns."""
    rounds = []
    for share in (1.0, SHARE):
        task = CheckedTask(a_task(of_model))
        model = task.model()
        if share < 1:
            task.train_last(share)
        task.prepare(a_site(0, 0))
        rounds.append((task, model.weights))
    ratios = []
    for turn in range(TURNS + 1):
        taken = []
        for task, weights in rounds:
            began = time.process_time()
            task.train(weights, PLAN, seed=turn, progress=lambda _done, _total: None)
            taken.append(time.process_time() - began)
        ratios.append(taken[1] / taken[0])
    # The first turn compiles the training steps.
    return median(ratios[1:])


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    model: str
    strategy: str
    side: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The seconds of a round of the slowest, and the mean of the last evaluations in percent."""

    slow_round_s: float
    last: float


def play(case: Case) -> Outcome:
    """Run a federation, and look at its last evaluations."""
    is_part = case.side == "part"
    slow_s = SLOW * (part_of_a_round(case.model) if is_part else 1.0)
    round_s = [1.0] * (WORKERS - 1) + ([] if case.side == "without" else [slow_s])
    tasks = [a_task(case.model) for _ in round_s]
    for index, task in enumerate(tasks):
        task.prepare(a_site(index, case.seed))
    updates = round(ENDS_S * sum(1 / each for each in round_s))
    strategy = StrategySettings(strategy=case.strategy).make_strategy()
    course = Course(
        strategy=strategy,
        plan=PLAN,
        round_s=round_s,
        updates=updates,
        seed=case.seed,
        evaluate_every=max(1, updates // (EVALUATIONS * strategy.buffer_size)),
        train_shares=[1.0] * (WORKERS - 1) + [SHARE if is_part else 1.0],
    )
    found = [
        point.metrics["accuracy"] for point in VirtualFederation(course, tasks, a_task(case.model)).run()
    ]
    return Outcome(slow_s, 100 * mean(found[-max(1, len(found) // 5) :]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    compare_over_seeds(
        Report("uneven-share", "uneven_share: the slowest of four workers trains a part, or all"),
        [
            {"model": model, "strategy": strategy, "side": side}
            for model, strategy, side in product(MODELS, ("reuse", "fedbuff"), SIDES)
        ],
        Case,
        play,
        lambda runs: {
            "slow_round_s": round(median(each.slow_round_s for each in runs), 2),
            "last": mean(each.last for each in runs),
            "spread": spread_of([each.last for each in runs]),
            "by_seed": [round(each.last, 2) for each in runs],
        },
        seeds=5,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
