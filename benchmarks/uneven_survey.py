"""Sites that measure in different units: with a survey the federation learns, without it learns nothing.

    python -m benchmarks.uneven_survey --seeds 5

Two tables of scikit-learn, wines and tumours, dealt out to four sites. Their columns are as they were
measured, from tenths to thousands, and one site has every third column in a unit that is a thousand times
smaller. All sites train the same small network with the same learning rate. Held-out rows are in the unit of
the other three sites.

`none` feeds the columns as they are, `survey` scales them by SurveyNormalization, and `pooled` knows what no
federation can: the units, and mean and deviation of all rows in one of them.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_wine

from benchmarks.measuring import Cell, Report, compare_over_seeds
from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker import keras_task
from fluffle_worker.evaluator import EvaluatorResult
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.running import run_evaluator, run_worker

SITES = 4
UPDATES = 240
LEARNING_RATE = 0.1
DEADLINE_S = 300.0
TABLES: dict[str, Callable[..., Any]] = {"wines": load_wine, "tumours": load_breast_cancer}
REMEDIES = ("none", "survey", "pooled")
# The site with other units, and the unit of every third of its columns.
ODD_SITE, UNIT = 0, 1000.0

Data = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class Case:
    """One federation."""

    table: str
    remedy: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of it: the accuracy of the last version, and the share of the most frequent class."""

    accuracy: float
    most_frequent: float


def parts_of(case: Case) -> tuple[Data, list[Data]]:
    """Return a quarter of the rows, held out, and those of each site, in the units that it measures in."""
    x, y = TABLES[case.table](return_X_y=True)
    order = np.random.default_rng(case.seed).permutation(len(y))
    held, rest = order[: len(y) // 4], order[len(y) // 4 :]
    if case.remedy == "pooled":
        x = (x - x[rest].mean(axis=0)) / x[rest].std(axis=0)
    sites = []
    for site in range(SITES):
        rows = rest[site::SITES]
        unit = np.where(np.arange(x.shape[1]) % 3 == 0, UNIT, 1.0)
        is_odd = site == ODD_SITE and case.remedy != "pooled"
        sites.append((x[rows] * unit if is_odd else x[rows], y[rows]))
    return (x[held], y[held]), sites


def task_of(case: Case) -> KerasTask:
    """Return the task of a case; each worker has one of its own."""
    held_out, sites = parts_of(case)

    def build_model() -> KerasModel:
        keras = import_keras()
        columns, classes = held_out[0].shape[1], int(held_out[1].max()) + 1
        layers: list[Any] = [keras.Input((columns,))]
        if case.remedy == "survey":
            layers.append(keras_task.SurveyNormalization())
        layers += [keras.layers.Dense(16, "relu"), keras.layers.Dense(classes)]
        model = keras.Sequential(layers)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(LEARNING_RATE), loss, metrics=["accuracy"])
        return model

    return KerasTask(build_model, lambda site: sites[site.index], lambda: held_out)


def play(case: Case) -> Outcome:
    """Run a federation of a case on a private broker, and return what became of it."""
    labels = parts_of(case)[0][1]
    _, evaluated = federate(case, _node().amqp_url)
    metrics = evaluated.newest.metrics if evaluated.newest else {}
    return Outcome(metrics.get("accuracy", 0.0), float(np.bincount(labels).max() / labels.size))


def federate(case: Case, broker_url: str) -> tuple[AggregatorResult, EvaluatorResult]:
    """Run a federation of a case in threads, to its end."""
    where: dict[str, Any] = {
        "federation": f"{case.table}-{case.remedy}-{case.seed}",
        "broker_url": broker_url,
    }
    led: dict[str, Any] = {"seed": case.seed, "max_updates": UPDATES}
    if case.remedy == "survey":
        led["survey"] = SITES

    def work(site: int, spool: str) -> object:
        mine: dict[str, Any] = {"name": f"site-{site}", "site": site, "sites": SITES, "seed": case.seed}
        return run_worker(task_of(case), spool=spool, **mine, **where)

    async def together(spool: str) -> tuple[AggregatorResult, EvaluatorResult]:
        workers = [asyncio.create_task(asyncio.to_thread(work, site, spool)) for site in range(SITES)]
        aggregator = asyncio.to_thread(lambda: run_aggregator(task_of(case), **led, **where))
        evaluator = asyncio.to_thread(lambda: run_evaluator(task_of(case), **where))
        async with asyncio.timeout(DEADLINE_S):
            ended, evaluated = await asyncio.gather(aggregator, evaluator)
            # One whose training gives NaN may end with an error.
            await asyncio.gather(*workers, return_exceptions=True)
        return ended, evaluated

    with tempfile.TemporaryDirectory(prefix="fluffle-survey-") as spool:
        return asyncio.run(together(spool))


def row_of(outcomes: Sequence[Outcome]) -> dict[str, Cell]:
    """Return the cells of one setting."""
    accuracies = [each.accuracy for each in outcomes]
    return {
        "accuracy": median(accuracies),
        "accuracies": [round(each, 3) for each in sorted(accuracies)],
        "most_frequent_class": median(each.most_frequent for each in outcomes),
    }


@cache
def _node() -> BrokerNode:
    """Return the broker of this process, which ends with it."""
    return BrokerNode.start(Path(tempfile.mkdtemp(prefix="fluffle-survey-broker-")), management=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Play all cases, and print a table."""
    report = Report("uneven-survey", f"One of {SITES} sites measures in other units, {UPDATES} updates")
    settings = [{"table": table, "remedy": remedy} for table in TABLES for remedy in REMEDIES]
    compare_over_seeds(report, settings, Case, play, row_of, arguments=arguments)


if __name__ == "__main__":
    main()
