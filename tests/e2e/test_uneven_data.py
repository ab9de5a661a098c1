"""A federation of sites whose data is dirty in different ways: each cleans its own as its TOML file says."""

import asyncio
from pathlib import Path
from typing import Any

import keras
import numpy as np
from in_threads import Data, all_of, held_out_tumours, tumours_of

from fluffle.task import Site
from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.loop import WorkerResult
from fluffle_worker.running import run_evaluator, run_worker

# What each of the three sites does about its data; the first has nothing to do.
TABLES = (
    "",
    'impute = "knn:3"\noutliers = "mad:5"\n',
    'balance = "balanced_softmax"\naugment = ["noise:0.05"]\n',
)


def of_site(site: Site) -> Data:
    x, y = tumours_of(site)
    if site.index == 1:
        x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
        x[3, 3], x[5] = np.inf, x[5] * 1000
    if site.index == 2:
        keep = (y == 1) | (np.cumsum(y == 0) <= 5)
        x, y = x[keep], y[keep]
    return x, y


def a_task() -> KerasTask:
    def build_model() -> keras.Model:
        layers = [keras.Input((30,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return KerasTask(build_model, of_site, held_out_tumours)


def test_sites_that_clean_and_balance_their_own_data_train_a_good_model(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    files = [tmp_path / f"site-{site}.toml" for site in range(len(TABLES))]
    for file, table in zip(files, TABLES, strict=True):
        file.write_text(f"[data]\n{table}" if table else "", encoding="utf-8")

    def work(site: int) -> WorkerResult:
        mine = {"site": site, "sites": len(TABLES), "config": files[site]}
        return run_worker(a_task(), name=f"site-{site}", spool=tmp_path, **(where | mine))

    led, _, *worked = asyncio.run(
        all_of(
            lambda: run_aggregator(a_task(), target="accuracy>=0.93", max_updates=600, **where),
            lambda: run_evaluator(a_task(), **where),
            *(lambda site=site: work(site) for site in range(len(TABLES))),
        )
    )

    assert isinstance(led, AggregatorResult)
    assert "accuracy>=0.93" in led.ended_by
    for each in worked:
        assert isinstance(each, WorkerResult)
        assert each.rounds >= 1
        assert (each.refused, each.waiting) == (0, 0)
