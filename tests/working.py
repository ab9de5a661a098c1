"""A worker or an evaluator at work on a fake server: a task without a framework, and a scripted broker."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from brokers import commit
from builders import a_version
from fake_broker import FakeBroker, FakeServer
from numpy.typing import NDArray

from fluffle.checked_task import CheckedTask, TaskModel
from fluffle.model import Weights
from fluffle.pieces import Body
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.task import Progress, Site, Task, Trained
from fluffle.topology import MIB, topology_of
from fluffle.update import WeightUpdate
from fluffle.wire import Inbound, decode_inbound
from fluffle_worker.loop import Worker
from fluffle_worker.spool import Spool

TOPOLOGY = topology_of("digits")
BATCHES = 3


def nothing() -> None:
    """Happen not."""


def ends_after(count: int, last: ModelVersion) -> Callable[[FakeServer, int], None]:
    """Return a script that publishes the last version when so many messages were sent."""

    def script(server: FakeServer, number: int) -> None:
        if number == count:
            publish_versions(server, last)

    return script


class CountingTask:
    """Training adds one to every weight; `meanwhile` happens in the middle of each round."""

    def __init__(self, *, meanwhile: Callable[[], None] = nothing, name: str = "w") -> None:
        self.meanwhile = meanwhile
        self.name = name
        self.started_from: list[float] = []
        self.seeds: list[int] = []

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {self.name: np.zeros(2, np.float32), "steps": np.zeros(1, np.int64)}

    def prepare(self, site: Site) -> int:
        """See Task."""
        return 10

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        kernel, steps = weights[self.name], weights["steps"]
        self.started_from.append(float(kernel.astype(np.float32)[0]))
        self.seeds.append(seed)
        for batch in range(1, BATCHES + 1):
            if batch == 2:
                self.meanwhile()
            progress(batch, BATCHES)
        trained: dict[str, NDArray[np.generic]] = {
            self.name: kernel.astype(np.float32) + np.float32(1),
            "steps": steps.astype(np.int64) + BATCHES,
        }
        return Trained(trained, examples=10, metrics={"loss": float(np.float32(0.5))})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """See Task."""
        self.meanwhile()
        return {"accuracy": float(weights[self.name].astype(np.float32)[0])}

    def save(self, weights: Weights, path: Path) -> None:
        """See Task."""

    def load(self, path: Path) -> Weights:
        """See Task."""
        return self.initial_weights(0)


def version_of(model: TaskModel, plan: Plan) -> ModelVersion:
    """Return the first version of a task's model."""
    flat = model.layout.flatten(model.weights)
    version = a_version(layout=model.layout, plan=plan)
    return replace(version, vector=flat.vector, statistics=flat.statistics, integers=flat.integers)


def a_worker(task: Task, folder: Path, **given: Any) -> Worker:
    """Return the worker "w1" with its spool in a folder, and whatever else is given."""
    spool = Spool(folder, worker="w1", max_bytes=MIB)
    return Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, **given)


def updates_of(task: Task, plan: Plan, folder: Path, *, updates: int, **given: Any) -> list[WeightUpdate]:
    """Let a worker send so many updates, each from a version of its own, and return them."""
    first = version_of(CheckedTask(task).model(), plan)
    server = a_federation(first)

    def script(_server: object, count: int) -> None:
        publish_versions(server, replace(first, version=count, finished="enough" if count == updates else ""))

    a_worker(task, folder, **given).work(lambda: Scripted(server, script))
    return sent_updates(server)


class Scripted(FakeBroker):
    """A connection on which something happens whenever an update or a report was sent."""

    def __init__(self, server: FakeServer, happens: Callable[[FakeServer, int], None]) -> None:
        super().__init__(server)
        self._stage = server
        self._happens = happens

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        super().publish(exchange, routing_key, body, headers)
        self._happens(self._stage, len(sent(self._stage)))


def a_federation(*versions: ModelVersion) -> FakeServer:
    """Return a server on which these versions are published."""
    server = FakeServer(longest_wait_s=0)
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
    publish_versions(server, *versions)
    return server


def publish_versions(server: FakeServer, *versions: ModelVersion) -> None:
    """Publish versions as an aggregator does."""
    with FakeBroker(server) as broker:
        commit(broker, TOPOLOGY, *versions)


def sent(server: FakeServer) -> list[Inbound]:
    """Return what was sent to the aggregator, in its order."""
    return [decode_inbound(body) for body in server.bodies(TOPOLOGY.updates.name)]


def sent_updates(server: FakeServer) -> list[WeightUpdate]:
    """Return the updates that were sent."""
    return [message for message in sent(server) if isinstance(message, WeightUpdate)]


def later(action: Callable[[], None]) -> None:
    """Do something a moment later, in another thread."""
    threading.Timer(0.05, action).start()
