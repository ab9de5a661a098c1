"""What the driver shows while the sites work: how many are at work, and each that has ended."""

import threading
from itertools import count
from types import TracebackType
from typing import Self

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.accumulators import AddingAccumulatorParam

from fluffle.logs import get_logger
from fluffle_spark.order import SiteReport
from fluffle_spark.stages import Stages

log = get_logger(__name__)

LOOK_EVERY_S = 0.5
# How many of these looks go by between two at the stages.
LOOKS_AT_STAGES = 6


class Watched:
    """Logs at the driver, as soon as a site's task ends, how it ended; sites that still train go on.

    The jobs have the tag `tag`.
    """

    def __init__(self, sc: SparkContext, sites: int, tag: str) -> None:
        self._stages = Stages(sc, tag)
        self._at_work = self._waiting = 0
        # The last reports of sites; Spark counts those of a task once, whatever fails.
        self.accumulator = sc.accumulator((), AddingAccumulatorParam(()))
        self._sites, self._told = sites, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sites", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._tell()

    def _run(self) -> None:
        for look in count(1):
            if self._over.wait(LOOK_EVERY_S):
                return
            self._tell()
            if look % LOOKS_AT_STAGES == 0:
                try:
                    self._stages.end_superseded()
                    self._tell_who_works(*self._stages.tasks())
                except Py4JError as error:
                    log.debug("Spark does not tell of its stages", because=str(error))

    def _tell_who_works(self, at_work: int, waiting: int) -> None:
        # Sites that have ended have their own line.
        if at_work > self._at_work or waiting > self._waiting:
            said = {"waiting_for_a_slot": waiting} if waiting else {}
            log.info("sites at work", sites=at_work, **said)
        self._at_work, self._waiting = at_work, waiting

    def _tell(self) -> None:
        reports = [SiteReport.decode(line) for line in self.accumulator.value[self._told :]]
        for report in reports:
            self._told += 1
            counts = {
                "site": report.site,
                "rounds": report.rounds,
                "updates": report.updates,
                "sites_ended": f"{self._told} of {self._sites}",
            }
            if report.error:
                log.error("a site has failed; the others go on", because=report.error, **counts)
            else:
                log.info("a site has ended", because=report.ended or "its turn is over", **counts)
