"""Median and trimmed mean with networks and data that users bring: one of five sites has broken data."""

from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
from builders import a_config, a_strategy, a_version
from leading import a_server, aggregate, newest, send
from tasks import broken_site_task

from fluffle.checked_task import CheckedTask
from fluffle.record import ModelVersion
from fluffle.task import Site
from fluffle.update import UpdateId
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.round import minibatch_seed, train_round

SITES = 5
ROUNDS = 10


def first_version(task: KerasTask) -> ModelVersion:
    model = CheckedTask(task).model()
    flat = model.layout.flatten(model.weights)
    return replace(
        a_version(layout=model.layout),
        vector=flat.vector,
        statistics=flat.statistics,
        integers=flat.integers,
    )


def versions_of(task: KerasTask, strategy: Strategy) -> list[ModelVersion]:
    """Train at each of the sites in turn, and let a new leader take the updates of each round."""
    config = a_config(strategy, first=first_version(task))
    server = a_server(config)
    history = [newest(server, config)]
    site_task = CheckedTask(task)
    site_task.model()
    for number in range(1, ROUNDS + 1):
        for index in range(SITES):
            site_task.prepare(Site(index=index, count=SITES, split="iid"))
            trained = train_round(
                site_task,
                history[-1],
                {},
                update_id=UpdateId(f"site-{index}", "run", number),
                seed=minibatch_seed(index, number),
                progress=lambda _done, _total: None,
            )
            assert not trained.unusable
            send(server, config, trained.update)
        aggregate(server, config)
        history.append(newest(server, config))
    assert history[-1].updates == ROUNDS * SITES
    return history


def last_accuracy(task: KerasTask, history: list[ModelVersion]) -> float:
    return mean(float(task.evaluate(version.weights)["accuracy"]) for version in history[-3:])


@pytest.mark.parametrize(
    ("task", "settings", "least", "most_of_mean"),
    [
        (broken_site_task.table, {"name": "fedavg", "rule": "median"}, 0.93, 0.8),
        (
            broken_site_task.table,
            {"rule": "trimmed-mean:0.2", "optimizer": "adam", "learning_rate": 0.02},
            0.93,
            0.8,
        ),
        (broken_site_task.sequence, {"name": "fedavg", "rule": "trimmed-mean:0.2"}, 0.87, 0.89),
    ],
)
def test_a_robust_rule_keeps_the_model_good_where_the_mean_follows_the_broken_site(
    task: KerasTask, settings: dict[str, Any], least: float, most_of_mean: float
) -> None:
    robust = versions_of(task, a_strategy(buffer_size=SITES, **settings))
    plain = versions_of(task, a_strategy(buffer_size=SITES, **settings | {"rule": "mean"}))

    accuracy, of_mean = last_accuracy(task, robust), last_accuracy(task, plain)
    assert accuracy > least
    assert of_mean < most_of_mean
    assert accuracy > of_mean
    # An optimizer's momentum must not make a variance negative: flower #1060 and FL4Health #39 met NaN so.
    weights = [item for version in (*robust, *plain) for item in version.weights.items()]
    variances = [array for name, array in weights if "variance" in name]
    assert all(float(each.min()) >= 0 for each in map(np.asarray, variances))
    assert bool(variances) == (task is broken_site_task.table)
