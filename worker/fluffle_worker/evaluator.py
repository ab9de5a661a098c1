"""The evaluator's loop: read the newest version, evaluate it on held-out data, report the metrics."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

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
from fluffle.survey.result import SurveyResult
from fluffle.task import Task
from fluffle.topology import Topology
from fluffle.wire import encode_evaluation
from fluffle_worker.sealed_versions import SharedKey
from fluffle_worker.sealing import SealedSite

log = get_logger(__name__)

Note = Callable[[ModelVersion, Evaluation | None], None]


@dataclass(frozen=True, slots=True)
class EvaluatorResult:
    """What an evaluator did, and why it ended.

    `ended_by` is the reason for which the federation finished; empty when the evaluator was asked to stop.
    `newest` is its last evaluation, None without one.
    """

    ended_by: str
    evaluated: int
    newest: Evaluation | None


@dataclass(kw_only=True, eq=False)
class Evaluator:
    """Evaluates the newest version again and again; versions published meanwhile are skipped.

    `note` is called with each evaluated version and its evaluation. With a `sealed_key` it evaluates versions
    of a sealed federation, and no others; `sealed_only` is that of a worker.
    """

    name: str
    task: Task
    topology: Topology
    stop: threading.Event = field(default_factory=threading.Event)
    event_sink: EventSink = NULL_SINK
    note: Note | None = None
    sealed_key: SharedKey | None = None
    sealed_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Build the model."""
        self._task = CheckedTask(self.task, self.stop)
        self._model = self._task.model()
        if self._model.local:
            log.warning(
                "the task has local weights: they are evaluated as first built, not as a site has them",
                weights=some_of(self._model.local),
            )
        self._sealed = SealedSite(key=self.sealed_key, only=self.sealed_only, who="evaluator")
        self._last: Rank | None = None
        self._was_closing = False
        self._used: SurveyResult | None = None
        self._result = EvaluatorResult("", 0, None)

    def work(self, connect: Callable[[], Broker], *, patience_s: float = math.inf) -> EvaluatorResult:
        """Evaluate version after version until the federation has finished, or until asked to stop.

        A lost connection is replaced. If every connection ends within a second for `patience_s`, the last
        error is raised. Raises LayoutError when the federation's model differs from the task's, and
        ConfigError when either the plan or this evaluator wants a sealed federation and the other does not.
        """
        with suppress(StopRequested):
            work = until_federation_is_gone(self._work_on)
            run_with_reconnect(connect, work, self.stop, self.event_sink, patience_s=patience_s)
        if self.stop.is_set() and not self._result.ended_by:
            log.info("asked to stop", evaluations=self._result.evaluated)
        return self._result

    def _work_on(self, broker: Broker) -> None:
        while found := newest_version(broker, self.topology, stop=self.stop, newer_than=self._last):
            found.layout.require(self._model.layout)
            version = self._sealed.opened(found)
            if version.finished:
                # The aggregator has left, so there is no report. A closing version had the same model.
                is_known = self._was_closing and self._last and self._last.version == version.version - 1
                if not is_known:
                    self._evaluate(version)
                self._result = replace(self._result, ended_by=version.finished)
                log.info("the federation has finished", because=version.finished)
                return
            evaluation = self._evaluate(version)
            headers = {"kind": "evaluation", "id": f"{self.name}/{version.version}"}
            try:
                broker.publish(self.topology.evaluations_in.name, "", encode_evaluation(evaluation), headers)
            except QueueFull as error:
                # A newer version will be evaluated when there is room again.
                log.warning("a report was not accepted", version=version.version, because=str(error))
            self._last, self._was_closing = version.rank, bool(version.closing)

    def _evaluate(self, version: ModelVersion) -> Evaluation:
        is_averaged = {"averaged": version.average_decay} if version.average_decay else {}
        result = version.survey.result if version.survey else None
        if result is not None and result != self._used:
            self._task.use_statistics(result)
            self._used = result
        log.info("evaluating", version=version.version, **is_averaged)
        started = time.monotonic()
        metrics = self._task.evaluate({**version.weights_to_evaluate, **self._model.local})
        evaluate_s = time.monotonic() - started
        self.event_sink(Measured(version.version, evaluate_s))
        shown = {name: round(value, 4) for name, value in metrics.items()}
        log.info("evaluated", version=version.version, seconds=round(evaluate_s, 2), metrics=shown)
        if bad := not_finite(metrics):
            log.warning("metrics of this version are not finite", version=version.version, metrics=bad)
        evaluation = Evaluation(version.federation, self.name, version.version, metrics, evaluate_s)
        self._result = EvaluatorResult("", self._result.evaluated + 1, evaluation)
        if self.note:
            self.note(version, evaluation)
        return evaluation
