"""The evaluator's loop: newest model, evaluate on held-out data, report. One more reader of the stream."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.errors import QueueFull
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.events import Measured
from fluffle.logs import get_logger
from fluffle.model import some_of
from fluffle.model_stream import newest_version
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.record import Evaluation, ModelVersion, Rank, not_finite
from fluffle.stopping import StopRequested
from fluffle.task import Task
from fluffle.topology import Topology
from fluffle.wire import encode_evaluation

log = get_logger(__name__)


Note = Callable[[ModelVersion, Evaluation], None]


@dataclass(frozen=True, slots=True)
class EvaluatorResult:
    """What an evaluator did, and why it ended.

    `ended_by` is the reason for which the federation has finished; empty when the evaluator was asked to
    stop. `newest` is its last evaluation, None without one.
    """

    ended_by: str
    evaluated: int
    newest: Evaluation | None


class Evaluator:
    """Evaluates the newest version that it can keep up with; the versions in between are left out."""

    def __init__(
        self,
        *,
        name: str,
        task: Task,
        topology: Topology,
        stop: threading.Event,
        event_sink: EventSink = NULL_SINK,
        notes: Sequence[Note] = (),
    ) -> None:
        """Make an evaluator of a task; `notes` are called with each version and what was measured of it."""
        self.name = name
        self._task = CheckedTask(task, stop)
        self._model = self._task.model()
        if self._model.local:
            log.warning(
                "the task has local weights: they are evaluated as first built, not as a site has them",
                weights=some_of(self._model.local),
            )
        self._topology = topology
        self._stop = stop
        self._tell = event_sink
        self._notes = notes
        self._last: Rank | None = None
        self._was_closing = False
        self._evaluated = 0
        self._newest_evaluation: Evaluation | None = None
        self._ended_by = ""

    def work(self, connect: Callable[[], Broker], *, patience_s: float = math.inf) -> EvaluatorResult:
        """Evaluate version after version until the federation has finished, or until asked to stop.

        A lost connection is made anew; `patience_s` is how long connections may end within a second, one
        after the other. Raises LayoutError when the federation's model is another than the task's.
        """
        with suppress(StopRequested):
            run_with_reconnect(
                connect,
                until_federation_is_gone(self._work_on),
                self._stop,
                self._tell,
                patience_s=patience_s,
            )
        if self._stop.is_set() and not self._ended_by:
            log.info("asked to stop", evaluations=self._evaluated)
        return EvaluatorResult(self._ended_by, self._evaluated, self._newest_evaluation)

    def _work_on(self, broker: Broker) -> None:
        while version := self._newest(broker):
            version.layout.require(self._model.layout)
            # The last record has the model of the one before, if that was closing.
            is_known = self._last and self._last.version == version.version - 1 and self._was_closing
            if not (version.finished and is_known):
                evaluation = self._evaluate(version)
            if version.finished:
                # Nobody would read a report: the aggregator has left.
                self._ended_by = version.finished
                log.info("the federation has finished", because=version.finished)
                return
            self._report(broker, evaluation)
            self._last, self._was_closing = version.rank, bool(version.closing)

    def _newest(self, broker: Broker) -> ModelVersion | None:
        log.debug("waiting for a new version")
        return newest_version(broker, self._topology, stop=self._stop, newer_than=self._last)

    def _evaluate(self, version: ModelVersion) -> Evaluation:
        log.info("evaluating", version=version.version)
        started = time.monotonic()
        metrics = self._task.evaluate({**version.weights, **self._model.local})
        evaluate_s = time.monotonic() - started
        self._tell(Measured(version.version, evaluate_s))
        shown = {name: round(value, 4) for name, value in metrics.items()}
        log.info("evaluated", version=version.version, seconds=round(evaluate_s, 2), metrics=shown)
        if bad := not_finite(metrics):
            log.warning(
                "this version's metrics are not finite", version=version.version, metrics=", ".join(bad)
            )
        evaluation = Evaluation(version.federation, self.name, version.version, metrics, evaluate_s)
        self._evaluated, self._newest_evaluation = self._evaluated + 1, evaluation
        for note in self._notes:
            note(version, evaluation)
        return evaluation

    def _report(self, broker: Broker, evaluation: Evaluation) -> None:
        headers = {"kind": "evaluation", "id": f"{self.name}/{evaluation.version}"}
        try:
            broker.publish(self._topology.evaluations_in.name, "", encode_evaluation(evaluation), headers)
        except QueueFull as error:
            # A newer version will be evaluated when there is room again.
            log.warning("the report was not taken", version=evaluation.version, because=str(error))
