"""What the driver shows while the sites work: each site that has ended, and all their rounds and updates."""

import threading
from itertools import count
from types import TracebackType
from typing import Self

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.accumulators import AccumulatorParam

from fluffle.logs import get_logger
from fluffle_spark.order import SiteReport
from fluffle_spark.superseded import SupersededTasks

log = get_logger(__name__)

LOOK_EVERY_S = 0.5
# How many of these looks go by between two at the stages.
LOOKS_AT_STAGES = 6


class _Lines(AccumulatorParam[list[bytes]]):
    """Collects the last reports of sites; Spark counts those of a task once, whatever fails."""

    def zero(self, value: list[bytes]) -> list[bytes]:
        return value[:0]

    def addInPlace(self, value1: list[bytes], value2: list[bytes]) -> list[bytes]:  # noqa: N802
        return value1 + value2


class Watched:
    """Logs at the driver, as soon as a site's task ends, how it ended; sites that still train go on.

    The jobs have the tag `tag`.
    """

    def __init__(self, sc: SparkContext, sites: int, tag: str) -> None:
        self._superseded = SupersededTasks(sc, tag)
        self.accumulator = sc.accumulator([], _Lines())
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
                    self._superseded.end()
                except Py4JError as error:
                    log.debug("Spark does not tell of its stages", because=str(error))

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
