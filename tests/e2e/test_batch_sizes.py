"""`--batch-size auto` with a real broker: each worker finds a size, and one of them runs out of memory."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from in_threads import all_of, digits_of, held_out_digits, rounds_by_worker

from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.loop import WorkerResult
from fluffle_worker.running import run_evaluator, run_worker

SITES = 3
FIRST, MOST = 8, 64
# The last site has no memory for more than these.
FITS = 4


def a_task(most: int = MOST) -> KerasTask:
    def allocate(x: Any) -> Any:
        # 4 TiB in one piece, which no allocator gives.
        size = tf.where(tf.shape(x)[0] > most, tf.constant(2**40, tf.int64), 1)
        return x + 0.0 * tf.random.uniform([size])[0]

    def build_model() -> keras.Model:
        layers = [keras.Input((64,)), keras.layers.Lambda(allocate), keras.layers.Dense(10, "softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return KerasTask(build_model, digits_of, held_out_digits)


def test_each_worker_finds_a_size_for_its_machine_and_together_they_train_a_good_model(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    plan: dict[str, Any] = {"batch_size": f"auto:{FIRST}", "max_batch_size": MOST, "max_updates": 60}

    def work(site: int) -> WorkerResult:
        task = a_task(FITS) if site == SITES - 1 else a_task()
        return run_worker(task, name=f"site-{site}", site=site, sites=SITES, spool=tmp_path, **where)

    led, _, *worked = asyncio.run(
        all_of(
            lambda: run_aggregator(a_task(), **plan, **where),
            lambda: run_evaluator(a_task(300), **where),
            *(lambda site=site: work(site) for site in range(SITES)),
        )
    )

    assert isinstance(led, AggregatorResult)
    assert led.version is not None
    assert "normalize_steps" in led.version.strategy
    assert led.version.best is not None
    assert led.version.best.metrics["accuracy"] >= 0.85
    assert all(isinstance(each, WorkerResult) and each.refused == 0 for each in worked)
    rounds = rounds_by_worker(node, federation)
    sizes = {worker: [one.batch_size for one in each] for worker, each in rounds.items()}
    assert set(sizes[f"site-{SITES - 1}"]) == {FITS}
    for site in range(SITES - 1):
        mine = sizes[f"site-{site}"]
        assert mine[:2] == [FIRST] * 2
        assert FIRST < max(mine) <= MOST
        assert all(after <= 2 * before for before, after in pairwise(mine))
    # The rate goes with the size, and so a round of each moves the model about as far.
    examples = [one.examples for _, one in sorted(led.version.contributors.items())]
    work_of = [one.local_work for _, one in sorted(led.version.contributors.items())]
    assert max(work_of) < 1.5 * max(examples) / FIRST
