"""One site as a Spark task: it gives its rows to a worker process and waits for it. Runs in the executors."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from pyspark import TaskContext

from fluffle_spark.order import Order, SiteReport

# How long the worker gets to publish what it has finished.
LEAVE_AFTER_S = 5.0
# The rows that a task returns: `SiteReport`, for Spark and for Arrow.
SPARK_SCHEMA = (
    "site string, rows bigint, rounds bigint, updates bigint, refused bigint, ended string, error string, "
    "metrics map<string, double>, ran_on string"
)
ARROW_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "rows": pa.int64(),
        "rounds": pa.int64(),
        "updates": pa.int64(),
        "refused": pa.int64(),
        "ended": pa.string(),
        "error": pa.string(),
        "metrics": pa.map_(pa.string(), pa.float64()),
        "ran_on": pa.string(),
    }
)
# What a worker computes with: as many threads as the task has CPUs.
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS")


class SiteDied(RuntimeError):
    """The worker process of a site died: Spark starts the task again."""


def run_site(
    batches: Iterable[pa.RecordBatch], order: Order, on_end: Callable[[SiteReport], None]
) -> Iterator[pa.RecordBatch]:
    """Be one site: yield its last report, which `on_end` gets too. Raises SiteDied if its process dies."""
    with _started(order) as process:
        try:
            report = _last_report(process, order, batches)
        finally:
            _end(process)
        if process.returncode:
            was_killed = process.returncode == -signal.SIGKILL
            why = report.error or ("it was killed, often for lack of memory" if was_killed else "a crash")
            raise SiteDied(
                f"the worker process of site {order.site} ended with {process.returncode} "
                f"(see the executor's stderr): {why}"
            )
    report = replace(report, ran_on=_executor())
    on_end(report)
    row = {name: getattr(report, name) for name in ARROW_SCHEMA.names}
    yield pa.RecordBatch.from_pylist([{**row, "metrics": list(report.metrics.items())}], ARROW_SCHEMA)


def _started(order: Order) -> "subprocess.Popen[bytes]":
    context = TaskContext.get()
    environment = os.environ | {
        # With what `addPyFile` brought.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
    }
    if context:
        environment = {**{name: str(context.cpus()) for name in THREADS}, **environment}
        if gpu := context.resources().get("gpu"):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.addresses)
    return subprocess.Popen(
        [sys.executable, "-m", "fluffle_spark.site_process", order.site],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        # Spark sends signals to the process group of the task.
        start_new_session=True,
    )


def _last_report(
    process: "subprocess.Popen[bytes]", order: Order, batches: Iterable[pa.RecordBatch]
) -> SiteReport:
    report = SiteReport(site=order.site)
    # A process that cannot use the rows says why, and does not read on.
    with suppress(BrokenPipeError):
        _send(process, order, batches)
    for line in process.stdout or ():
        report = SiteReport.decode(line)
    return report


def _send(process: "subprocess.Popen[bytes]", order: Order, batches: Iterable[pa.RecordBatch]) -> None:
    to = process.stdin
    if to is None:
        return
    to.write(order.encode())
    writer: pa.ipc.RecordBatchStreamWriter | None = None
    for batch in batches:
        writer = writer or pa.ipc.new_stream(to, batch.schema)
        writer.write_batch(batch)
    if writer is None:
        # A partition without rows comes without a batch.
        columns = [*order.features, order.label]
        writer = pa.ipc.new_stream(to, pa.schema([(name, pa.float64()) for name in columns]))
    writer.close()
    to.flush()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipe, at which the worker stops, and wait for it."""
    if process.stdin:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(LEAVE_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _executor() -> str:
    # Spark does not tell a task's Python process the number of its executor, but each executor works in a
    # folder of its own, which a cluster names after it.
    return f"{Path.cwd().name} on {socket.gethostname()}"
