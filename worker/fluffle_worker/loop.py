"""The worker's loop: newest model, train, publish. Read this first.

Training runs in this thread; the broker's connection has a thread of its own, which keeps its heartbeat up
however long an epoch takes.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import numpy as np
import tenacity

from fluffle.broker import Broker
from fluffle.errors import QueueFull
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle.models import newest_version
from fluffle.reconnecting import work_with_new_connections
from fluffle.record import ModelVersion
from fluffle.task import Progress, Task
from fluffle.topology import Topology
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update

log = get_logger(__name__)

ShowRound = Callable[[str], AbstractContextManager[Progress]]


class Stopped(Exception):
    """The worker was asked to stop, and gives up what it does."""


class Worker:
    """One life of a worker: its run id, and the update that is trained but not yet confirmed."""

    def __init__(
        self,
        *,
        name: str,
        task: Task,
        topology: Topology,
        seed: int,
        delay_s: float,
        show_round: ShowRound,
        stop: threading.Event,
    ) -> None:
        """Make a worker of a task whose data is prepared already; `seed` orders its minibatches."""
        self.name = name
        self.run_id = secrets.token_hex(8)
        self._task = task
        self._layout = Layout.of(task.initial_weights(0))
        self._topology = topology
        self._seed = seed
        self._delay_s = delay_s
        self._show_round = show_round
        self._stop = stop
        self._sequence = 0
        self._unsent: WeightUpdate | None = None
        self._last: ModelVersion | None = None

    def work(self, connect: Callable[[], Broker]) -> None:
        """Train round after round until the federation has finished, or until asked to stop.

        A lost connection is made anew, and what was not confirmed is sent again under its own id. Raises
        LayoutError when the federation's model is another than the task's.
        """
        with suppress(Stopped):
            work_with_new_connections(connect, self._work_on, self._stop)

    def _work_on(self, broker: Broker) -> None:
        while True:
            if self._unsent:
                self._publish(broker, self._unsent)
            version = self._newest(broker)
            if version is None:
                return
            if version.finished:
                log.info("the federation has finished", because=version.finished, rounds=self._sequence)
                return
            self._unsent = self._train(version)

    def _newest(self, broker: Broker) -> ModelVersion | None:
        """Return the newest version; in synchronous rounds, wait for one that has not been trained from."""
        waits = self._last and self._last.plan.one_update_per_version
        log.debug("waiting for a new version" if waits else "fetching the newest version")
        return newest_version(
            broker,
            self._topology,
            stop=self._stop,
            newer_than=self._last.rank if self._last and waits else None,
        )

    def _train(self, version: ModelVersion) -> WeightUpdate:
        """Train one round from a version, as its plan says."""
        version.layout.require(self._layout)
        self._last = version
        sequence = self._sequence + 1
        log.debug("round started", version=version.version, sequence=sequence)
        started = time.monotonic()
        seed = int(np.random.SeedSequence([self._seed, sequence]).generate_state(1)[0])
        weights = version.layout.restore(version.vector, version.integers)
        with self._show_round(f"version {version.version}, round {sequence}") as show:

            def progress(done: int, total: int) -> None:
                if self._stop.is_set():
                    raise Stopped
                show(done, total)

            trained = self._task.train(weights, version.plan, seed=seed, progress=progress)
        if self._delay_s:
            log.debug("idling", seconds=self._delay_s)
            if self._stop.wait(self._delay_s):
                raise Stopped
        vector, integers = version.layout.flatten(trained.weights)
        if version.plan.sends == "delta":
            # Against the version that this round started from, never against a newer one.
            np.subtract(vector, version.vector, out=vector)
        self._sequence = sequence
        train_s = time.monotonic() - started
        log.info(
            "round trained",
            version=version.version,
            sequence=sequence,
            seconds=round(train_s, 2),
            metrics={name: round(value, 4) for name, value in trained.metrics.items()},
        )
        return WeightUpdate(
            federation=version.federation,
            id=UpdateId(self.name, self.run_id, sequence),
            base_term=version.term,
            base_version=version.version,
            layout_digest=version.layout.digest,
            sends=version.plan.sends,
            codec=version.plan.codec,
            vector=vector,
            integers=integers,
            examples=trained.examples,
            metrics=trained.metrics,
            train_s=train_s,
        )

    def _publish(self, broker: Broker, update: WeightUpdate) -> None:
        """Send an update until the broker has it; a full queue is waited for."""
        body = encode_update(update)
        headers = {"kind": "update", "id": str(update.id), "worker": self.name}
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(QueueFull),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
            stop=tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=lambda _: log.warning("the updates queue is full; waiting", update=str(update.id)),
            reraise=True,
        )
        try:
            patiently(broker.publish, self._topology.updates_in.name, "", body, headers)
        except QueueFull as error:
            log.warning("the updates queue stayed full; leaving without the update", update=str(update.id))
            raise Stopped from error
        self._unsent = None
        log.info("update published", update=str(update.id), size_bytes=len(body))
