"""A federation whose workers differ 16 times in speed, with rounds of one length: real training, real broker.

Public reports ask for rounds that end before an epoch does (flower #660), for a length of rounds in seconds
that each round can set anew (flower #3234), and for other numbers of local steps at each client (UltraFlwr
#27).
"""

import asyncio
from pathlib import Path
from statistics import median
from typing import Any

import keras
import numpy as np
from in_threads import all_of, held_out_tumours, rounds_by_worker, tumours_of

from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.loop import WorkerResult
from fluffle_worker.running import run_evaluator, run_worker

ROUND_S = 1.0
# Seconds that a minibatch takes besides its training.
STEP_DELAYS_S = (0.01, 0.04, 0.16)


def a_task() -> KerasTask:
    def build_model() -> keras.Model:
        layers = [keras.Input((30,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return KerasTask(build_model, tumours_of, held_out_tumours)


def test_workers_of_different_speed_train_rounds_of_one_length_and_a_good_model(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    plan: dict[str, Any] = {"round_seconds": ROUND_S, "batch_size": 16, "max_updates": 36}

    def work(site: int, step_delay: float) -> WorkerResult:
        mine = {"site": site, "sites": len(STEP_DELAYS_S), "step_delay": step_delay, "spool": tmp_path}
        return run_worker(a_task(), name=f"site-{site}", **(where | mine))

    led, _, *worked = asyncio.run(
        all_of(
            lambda: run_aggregator(a_task(), **plan, **where),
            lambda: run_evaluator(a_task(), **where),
            *(lambda site=site, s=s: work(site, s) for site, s in enumerate(STEP_DELAYS_S)),
        )
    )

    assert isinstance(led, AggregatorResult)
    assert led.version is not None
    assert led.version.best is not None
    assert led.version.best.metrics["accuracy"] >= 0.9
    assert all(isinstance(each, WorkerResult) and each.refused == 0 for each in worked)
    rounds = rounds_by_worker(node, federation)
    # The first two rounds find out how fast the worker is.
    paced = {name: each[2:] for name, each in rounds.items()}
    assert len(paced) == len(STEP_DELAYS_S)
    assert all(0.6 * ROUND_S < median(one.train_s for one in each) < 1.6 * ROUND_S for each in paced.values())
    steps = [median(one.steps for one in each) for each in paced.values()]
    assert steps[0] > 2 * steps[1] > 4 * steps[2]
    # Each counts by its data, whatever it had time for.
    assert [one.examples for _, one in sorted(led.version.contributors.items())] == [134, 133, 133]
    assert np.ptp([len(each) for each in paced.values()]) <= 0.5 * max(map(len, paced.values()))
