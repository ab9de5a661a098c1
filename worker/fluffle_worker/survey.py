"""A worker's part in a survey: it answers once, waits for the result, and prepares its data with it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.errors import QueueFull
from fluffle.logs import get_logger
from fluffle.model_stream import newest_version
from fluffle.record import ModelVersion
from fluffle.secure.plan import SecurePlan
from fluffle.secure.surveyed import survey_plan
from fluffle.stopping import StopRequested
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.survey.result import SurveyResult
from fluffle.survey.statistics import DataStatistics
from fluffle.task import Site
from fluffle.topology import Topology
from fluffle.wire import encode_statistics
from fluffle_worker.masking import SecureSite
from fluffle_worker.site_state import SiteState
from fluffle_worker.spool import Spool

log = get_logger(__name__)

RETRY_EVERY_S = 2.0


@dataclass(eq=False)
class SurveyAtSite:
    """The part of one worker in its federation's survey."""

    worker: str
    task: CheckedTask
    site: Site
    state: SiteState
    topology: Topology
    stop: threading.Event
    secure: SecureSite
    spool: Spool
    # Sends what is in the spool.
    send: Callable[[ModelVersion, Broker], None]
    _used: SurveyResult | None = None

    def is_open(self, version: ModelVersion, broker: Broker) -> bool:
        """Answer a survey that is open in the newest version, and wait for a newer one; False if none is."""
        survey = version.survey
        if survey is None or not survey.is_open:
            return False
        if not self.secure.is_ready(version, broker):
            return True
        if not self._has_answered(survey, version.plan.secure):
            self._answer(version, survey, broker)
        if version.plan.secure:
            self.send(version, broker)
        newest_version(broker, self.topology, stop=self.stop, newer_than=version.rank)
        return True

    def prepare(self, version: ModelVersion) -> None:
        """Prepare the data again when the survey's result is another one than before, or is gone."""
        result = version.survey.result if version.survey else None
        if result == self._used:
            return
        examples = self.task.prepare(replace(self.site, statistics=result))
        self._used = result
        known = {"sites": result.sites, "rows": result.rows, "columns": len(result.columns)} if result else {}
        log.info("data prepared with the survey's statistics", examples=examples, **known)

    def _has_answered(self, survey: Survey, secure: SecurePlan | None) -> bool:
        return self.worker in survey.answered or self.state.answered == _answered_as(survey, secure)

    def _answer(self, version: ModelVersion, survey: Survey, broker: Broker) -> None:
        began = time.monotonic()
        statistics = self.task.statistics()
        if version.plan.secure:
            self.secure.add_masked_answer(self.spool, statistics, version)
            self._note_answered(version, survey, statistics, began)
            return
        body = encode_statistics(SiteStatistics(version.federation, self.worker, statistics))
        headers = {
            "kind": "survey",
            "id": f"{self.worker}/survey/{survey.attempt}",
            "worker": self.worker,
            "at": f"{time.time():.3f}",
        }
        while True:
            try:
                broker.publish(self.topology.updates_in.name, "", body, headers)
                break
            except QueueFull:
                log.warning("the updates queue is full; waiting")
                if self.stop.wait(RETRY_EVERY_S):
                    raise StopRequested from None
        self._note_answered(version, survey, statistics, began, size_bytes=len(body))

    def _note_answered(
        self,
        version: ModelVersion,
        survey: Survey,
        statistics: DataStatistics,
        began: float,
        **said: int,
    ) -> None:
        # A process that dies before this answers again after its restart, and the second answer is refused.
        self.state.note_answered(_answered_as(survey, version.plan.secure))
        log.info(
            "survey answered: waiting for its result",
            rows=statistics.rows,
            columns=len(statistics.names),
            seconds=round(time.monotonic() - began, 2),
            **said,
        )


def _answered_as(survey: Survey, secure: SecurePlan | None) -> int:
    """Return the number of an attempt; a masked answer counts only for the plan that it was masked by."""
    return survey.attempt if secure is None else survey.attempt << 32 | survey_plan(secure).revision
