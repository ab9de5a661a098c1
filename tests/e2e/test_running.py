"""A whole federation inside one process, as in a notebook: threads, task objects, and no signal handler."""

import asyncio
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from in_threads import DEADLINE_S, Data, all_of, held_out_tumours, tumours_of
from numpy_task import SoftmaxRegression

from fluffle.errors import ConfigError, LayoutError, NameTaken
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Progress, Site, Trained
from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker.evaluator import EvaluatorResult
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.loop import WorkerResult
from fluffle_worker.running import run_evaluator, run_worker

SITES = 3


def of_site(site: Site) -> Data:
    return as_float32(tumours_of(site))


def held_out() -> Data:
    return as_float32(held_out_tumours())


def as_float32(data: Data) -> Data:
    x, y = data
    return x.astype(np.float32), y.astype(np.float32)


def a_classifier() -> keras.Model:
    layers = [keras.Input((30,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def a_keras_task() -> KerasTask:
    return KerasTask(a_classifier, of_site, held_out)


class Wider(SoftmaxRegression):
    """The same with one more output."""

    def initial_weights(self, seed: int) -> Weights:
        return {"kernel": np.zeros((64, 11), np.float32), "bias": np.zeros(11, np.float32)}


def test_a_federation_of_keras_models_trains_in_the_threads_of_one_process_beside_a_running_loop(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def in_a_loop() -> list[object]:
        return await all_of(
            lambda: run_aggregator(
                a_keras_task(), target="accuracy>=0.9", max_updates=400, name="aggregator", **where
            ),
            lambda: run_evaluator(a_keras_task(), **where),
            *(
                lambda site=site: run_worker(
                    a_keras_task(), name=f"site-{site}", site=site, sites=SITES, spool=tmp_path, **where
                )
                for site in range(SITES)
            ),
        )

    led, judged, *worked = asyncio.run(in_a_loop())

    assert isinstance(led, AggregatorResult)
    assert led.version is not None
    assert led.version.best is not None
    assert "accuracy>=0.9" in led.ended_by
    assert led.version.best.metrics["accuracy"] >= 0.9
    assert isinstance(judged, EvaluatorResult)
    assert judged.ended_by == led.ended_by
    assert judged.newest is not None
    assert judged.evaluated >= 1
    for each in worked:
        assert isinstance(each, WorkerResult)
        assert each.ended_by == led.ended_by
        assert (each.refused, each.waiting) == (0, 0)
        assert each.version is not None
    assert sum(each.rounds for each in worked if isinstance(each, WorkerResult)) >= led.version.updates
    # The result is of use as it is.
    model = a_keras_task()
    model.initial_weights(0)
    assert model.evaluate(led.version.weights)["accuracy"] >= 0.85
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_event_ends_each_of_them_and_a_later_call_goes_on_with_the_federation(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    stop = threading.Event()

    def work() -> WorkerResult:
        return run_worker(SoftmaxRegression(), name="w", sites=1, spool=tmp_path, stop=stop, **where)

    def stop_after_some_rounds() -> None:
        assert leaving.wait(DEADLINE_S)
        stop.set()

    leaving = threading.Event()

    class Counting(SoftmaxRegression):
        """Says when it has evaluated twice."""

        evaluated = 0

        def evaluate(self, weights: Weights) -> Mapping[str, float]:
            self.evaluated += 1
            if self.evaluated == 2:
                leaving.set()
            return super().evaluate(weights)

    async def in_a_loop() -> list[object]:
        return await all_of(
            lambda: run_aggregator(SoftmaxRegression(), buffer_size=1, stop=stop, **where),
            lambda: run_evaluator(Counting(), stop=stop, **where),
            work,
            stop_after_some_rounds,
        )

    led, judged, worked, _ = asyncio.run(in_a_loop())
    assert isinstance(led, AggregatorResult)
    assert isinstance(judged, EvaluatorResult)
    assert isinstance(worked, WorkerResult)
    assert led.version is not None
    assert (led.ended_by, judged.ended_by, worked.ended_by) == ("", "", "")
    assert worked.rounds >= led.version.updates >= 1

    again = run_aggregator(max_updates=1, buffer_size=1, **where)
    assert again.version is not None
    assert again.version.updates >= led.version.updates
    assert again.ended_by == f"{again.version.updates} updates were applied"


def test_a_wrong_argument_is_named_as_an_argument(node: BrokerNode) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'brokerurl'.*did you mean broker_url"):
        run_worker(SoftmaxRegression(), brokerurl=node.amqp_url)
    with pytest.raises(ConfigError, match=r"^site must be greater than or equal to 0, not -1$"):
        run_worker(SoftmaxRegression(), site=-1)
    with pytest.raises(ConfigError, match=r"^buffer_size must be greater than or equal to 1, not 0$"):
        run_aggregator(SoftmaxRegression(), buffer_size=0)


def test_a_new_federation_needs_a_model_and_a_running_one_the_same_architecture(
    node: BrokerNode, federation: str
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url, "max_updates": 1}
    with pytest.raises(ConfigError, match="a new federation needs a model: give --task"):
        run_aggregator(**where)

    stop = threading.Event()
    first = threading.Thread(target=lambda: run_aggregator(SoftmaxRegression(), stop=stop, **where))
    first.start()
    try:
        evaluated = threading.Event()

        class Telling(SoftmaxRegression):
            """Says that there is a version."""

            def evaluate(self, weights: Weights) -> Mapping[str, float]:
                evaluated.set()
                return super().evaluate(weights)

        ended = threading.Event()
        judge = threading.Thread(target=lambda: run_evaluator(Telling(), stop=ended, **_only(where)))
        judge.start()
        assert evaluated.wait(DEADLINE_S)
        ended.set()
        judge.join(DEADLINE_S)
    finally:
        stop.set()
        first.join(DEADLINE_S)

    with pytest.raises(LayoutError, match=r"another architecture than the running federation.*kernel"):
        run_aggregator(Wider(), **where)


def _only(where: dict[str, Any]) -> dict[str, Any]:
    return {name: where[name] for name in ("federation", "broker_url")}


def test_a_second_worker_of_the_same_name_in_the_process_is_turned_away(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    stop, training = threading.Event(), threading.Event()

    class Telling(SoftmaxRegression):
        """Says that it trains."""

        def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
            training.set()
            return super().train(weights, plan, seed=seed, progress=progress)

    aggregator = threading.Thread(target=lambda: run_aggregator(SoftmaxRegression(), stop=stop, **where))
    worker = threading.Thread(
        target=lambda: run_worker(Telling(), name="w", sites=1, spool=tmp_path / "1", stop=stop, **where)
    )
    aggregator.start()
    worker.start()
    try:
        assert training.wait(DEADLINE_S)
        with pytest.raises(NameTaken, match="'w'"):
            run_worker(SoftmaxRegression(), name="w", sites=1, spool=tmp_path / "2", **where)
    finally:
        stop.set()
        worker.join(DEADLINE_S)
        aggregator.join(DEADLINE_S)
