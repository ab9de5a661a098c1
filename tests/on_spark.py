"""A federation on a real Spark cluster: its data, the call in a thread, and what the executors logged."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from federation import DEADLINE_S, Federation, wait_until
from pyspark.sql import DataFrame, SparkSession
from sklearn.datasets import load_digits

from fluffle.update import UpdateId
from fluffle_spark import federate

TASK = "numpy_task:task"
# Slow enough that a round can be hit in its middle.
ROUND_S = 0.3
HELD_OUT = 300


def digits(spark: SparkSession, *, sites: int = 2, of_class: bool = False) -> DataFrame:
    """Return digits that the task does not hold out, with a column of their site."""
    images, labels = load_digits(return_X_y=True)
    rows = [
        (pixels.tolist(), int(digit), f"ward-{(digit if of_class else number) % sites}")
        for number, (pixels, digit) in enumerate(zip(images[HELD_OUT:], labels[HELD_OUT:], strict=True))
    ]
    return spark.createDataFrame(rows, "pixels array<double>, digit int, ward string")


@dataclass
class Run:
    """A call of `federate` in a thread, and how it ended."""

    thread: threading.Thread
    rows: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def wait(self) -> "Run":
        """Wait for its end."""
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "federate does not end"
        return self


@contextmanager
def training(federation: Federation, data: DataFrame, **changed: Any) -> Iterator[Run]:
    """Train the sites of a data frame while the block lasts; the block ends the federation."""
    arguments: dict[str, Any] = {
        "task": TASK,
        "federation": federation.name,
        "broker_url": federation.broker_url,
        "features": "pixels",
        "label": "digit",
        "site_column": "ward",
        "delay": ROUND_S,
        "heartbeat_s": 5,
    } | changed

    def call() -> None:
        try:
            run.rows = {row.site: row for row in federate(data, **arguments).collect()}
        except BaseException as error:  # for the test to look at
            run.error = error

    run = Run(threading.Thread(target=call, daemon=True))
    run.thread.start()
    yield run
    if run.thread.is_alive():
        data.sparkSession.sparkContext.cancelAllJobs()
        run.wait()


def log_lines(work: Path, event: str) -> list[Mapping[str, Any]]:
    """Return what the workers inside the executors have logged of an event."""
    lines = [line for file in work.rglob("stderr") for line in file.read_text(errors="replace").splitlines()]
    found = [json.loads(line) for line in lines if line.startswith('{"time"') and line.endswith("}")]
    return [line for line in found if line["event"] == event]


def confirmed_in(work: Path, federation: str) -> set[UpdateId]:
    """Return the ids of the updates of a federation that workers inside the executors logged as confirmed."""
    ids = [
        line["update"].split("/")
        for line in log_lines(work, "update published")
        if line["federation"] == federation
    ]
    return {UpdateId(worker, run, int(sequence)) for worker, run, sequence in ids}


def runs_in(work: Path, federation: str) -> set[tuple[str, str]]:
    """Return the workers, and their runs, of which an update is confirmed."""
    return {(one.worker, one.run) for one in confirmed_in(work, federation)}


def site_processes(work: Path) -> list[psutil.Process]:
    """Return the worker processes of a cluster's executors."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "fluffle_spark.site_process" in process.cmdline() and Path(process.cwd()).is_relative_to(work):
                found.append(process)
    return found


def wait_for_updates(work: Path, federation: str, count: int, *, sites: int) -> None:
    """Wait until so many updates of each of so many sites are confirmed."""

    def are_there() -> bool:
        counts = Counter(one.worker for one in confirmed_in(work, federation))
        return len(counts) == sites and min(counts.values()) >= count

    wait_until(are_there, f"{count} confirmed updates of {sites} sites")
