"""What Spark costs: updates a second of workers in executors, and how soon a federation starts.

    python -m benchmarks.on_spark

Two workers train a small Keras network on the digits, with one thread each: as processes of `fluffle worker`,
and in two executors of a Spark cluster on this machine, in turns. The rate is that of updates in the newest
version over `SECONDS`, from the `WARM_UP`-th update on. `ratio` is Spark's rate over the other one; to reach,
0.9. `first_update_s` is the time from the call of `federate` on a running session until a version has its
first update, with a task that needs no TensorFlow; to reach, 5. The share of CPU that others had is the
greatest of the windows in which updates are counted.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from numpy_task import HELD_OUT
from pyspark.sql import DataFrame, SparkSession
from sklearn.datasets import load_digits

from benchmarks.floor import server_version
from benchmarks.measuring import OtherWork, Report, Spread, in_turns, wide_console
from benchmarks.spark_tasks import SITES
from benchmarks.verdicts import Verdict, exit_code
from fluffle.errors import FluffleError
from fluffle_cli.node import BrokerNode
from fluffle_spark import federate
from harness.federation import Federation, wait_until
from harness.spark import SparkCluster

WARM_UP = 100
SECONDS = 15.0
KERAS_TASK, NUMPY_TASK = "benchmarks.spark_tasks:keras_digits", "numpy_task:task"
STARTS = 3
RATIO, FIRST_UPDATE_S = 0.9, 5.0
_numbers = count(1)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="on_spark", description="Measure what Spark costs.")
    parser.add_argument("--repeats", type=int, default=4)
    given = parser.parse_args()
    report = Report("on-spark", "on-spark: two workers in Spark executors beside two processes")
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-on-spark-") as folder,
        BrokerNode.start(Path(folder) / "broker", management=False) as node,
        SparkCluster.prepare(Path(folder) / "spark").session("benchmark") as spark,
    ):
        report.rabbitmq = server_version(node.amqp_url)
        sides = Sides(node, Path(folder), digits(spark))
        # Seconds for each update, so that the rates of the two are compared turn by turn.
        found = in_turns({"spark": sides.on_spark, "plain": sides.plain}, given.repeats)
        starts = [sides.first_update() for _ in range(STARTS + 1)][1:]
    ratio, first = found["plain"].total / found["spark"].total, Spread(tuple(starts))
    report.add(
        {
            "updates_s": found["spark"].rates(1),
            "plain_updates_s": found["plain"].rates(1),
            "ratio": ratio,
            "first_update_s": first,
        },
        others=max(sides.others),
    )
    console = wide_console()
    report.show(console)
    verdicts = [
        Verdict("updates a second beside plain processes", "at least", RATIO, ratio),
        Verdict("until the first update", "at most", FIRST_UPDATE_S, first.median, " s"),
    ]
    for verdict in verdicts:
        console.print(verdict.sentence)
    sys.exit(exit_code(verdicts))


def digits(spark: SparkSession) -> DataFrame:
    """Return the rows of the two sites."""
    images, labels = load_digits(return_X_y=True)
    rows = [
        (pixels.tolist(), int(label), number % SITES)
        for number, (pixels, label) in enumerate(zip(images[HELD_OUT:], labels[HELD_OUT:], strict=True))
    ]
    frame = spark.createDataFrame(rows, "pixels array<float>, digit int, site int").persist()
    frame.count()
    return frame


class Sides:
    """Federations with the same data, one after the other."""

    def __init__(self, node: BrokerNode, folder: Path, data: DataFrame) -> None:
        self._node, self._folder, self._data = node, folder, data
        self.others: list[float] = []

    def plain(self) -> float:
        """Return the seconds for each update of two processes."""
        with self._federation(KERAS_TASK) as federation:
            for site in range(SITES):
                federation.worker(site, sites=SITES)
            return self._seconds_an_update(federation)

    def on_spark(self) -> float:
        """Return the seconds for each update of two executors."""
        with self._federation(KERAS_TASK) as federation, self._training(federation):
            return self._seconds_an_update(federation)

    def first_update(self) -> float:
        """Return the seconds from the call to the first update in a version."""
        with self._federation(NUMPY_TASK) as federation:
            wait_until(lambda: has_version(federation), "version 0")
            began = time.monotonic()
            with self._training(federation):
                wait_until(lambda: federation.newest().updates > 0, "the first update")
                return time.monotonic() - began

    def _seconds_an_update(self, federation: Federation) -> float:
        """Return the seconds for each update, once so many are there that everything is warm."""
        wait_until(lambda: has_version(federation) and federation.newest().updates >= WARM_UP, "some updates")
        before, began, others = federation.newest().updates, time.monotonic(), OtherWork()
        time.sleep(SECONDS)
        seconds = (time.monotonic() - began) / (federation.newest().updates - before)
        self.others.append(others.share)
        return seconds

    @contextmanager
    def _federation(self, task: str) -> Iterator[Federation]:
        number = next(_numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        name = f"side-{number}"
        with Federation(name, self._node.amqp_url, folder, task=task) as federation:
            federation.aggregator("lead", "--strategy", "fedasync")
            yield federation

    @contextmanager
    def _training(self, federation: Federation) -> Iterator[None]:
        def train() -> None:
            try:
                federate(
                    self._data,
                    task=federation.task,
                    federation=federation.name,
                    broker_url=federation.broker_url,
                    site_column="site",
                    label="digit",
                )
            except FluffleError as error:
                ended.append(str(error))

        ended: list[str] = []
        thread = threading.Thread(target=train)
        thread.start()
        try:
            yield
        finally:
            self._data.sparkSession.sparkContext.cancelAllJobs()
            thread.join()
        if not any("cancelled" in each for each in ended):
            raise AssertionError(f"the sites ended by themselves: {ended}")


def has_version(federation: Federation) -> bool:
    """Tell whether there is a version."""
    try:
        federation.newest()
    except (AssertionError, FluffleError):
        return False
    return True


if __name__ == "__main__":
    main()
