"""The worker process of one site: `python -m fluffle_spark.site_process`, started by a Spark task.

Spark ends a task that it takes back by killing the task's Python process, which could then publish nothing
any more. The worker is another process, in a session of its own: it notices that its standard input is
closed, stops as on SIGTERM, and publishes what it has finished (see docs/decisions/0037).
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from fluffle import logs
from fluffle.errors import FluffleError, NameTaken, SpoolInUse, TaskError
from fluffle.event_sink import Sinks
from fluffle.events import Event, Published, Trained, Validated
from fluffle.stopping import StopSignal, stop_on_signals
from fluffle.task import Task, load_task
from fluffle_spark.named_rows import with_named_rows
from fluffle_spark.order import Order, SiteReport
from fluffle_spark.rows import SiteRows
from fluffle_spark.task_code import unpack
from fluffle_worker.data.table import TaskWithSteps
from fluffle_worker.running import run_worker
from fluffle_worker.tabular.task import TabularTask

log = logs.get_logger(__name__)

# How long a copy of a site waits before it tries again to take the site's name, more each time.
RETRY_AFTER_S = 1.0
LONGEST_WAIT_S = 15.0


class Reporter(Sinks):
    """Reports to the Spark task after each event that changes the counts, and ends a turn that is over."""

    def __init__(self, order: Order, to: BinaryIO, stop: threading.Event) -> None:
        super().__init__()
        self._to, self._stop, self._turn = to, stop, order.rounds_per_turn
        self.report = SiteReport(site=order.site)

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        now = self.report
        match event:
            case Trained(loss=loss):
                metrics = now.metrics if loss is None else {**now.metrics, "loss": float(loss)}
                self.tell(rounds=now.rounds + 1, metrics=metrics)
            case Published():
                self.tell(updates=now.updates + 1)
                if self._turn and self.report.updates >= self._turn:
                    self._stop.set()
            case Validated(metrics=metrics):
                numbers = {f"val_{name}": float(each) for name, each in metrics.items() if is_number(each)}
                self.tell(metrics={**now.metrics, **numbers})

    def tell(self, **changed: Any) -> None:
        """Send a report with what has changed."""
        self.report = replace(self.report, **changed)
        # Where nobody reads any more, the pipe that ends this process is closed too.
        try:
            self._to.write(self.report.encode())
            self._to.flush()
        except BrokenPipeError:
            self._stop.set()


def is_number(value: object) -> bool:
    """Tell whether a metric is one number, and not one for each class."""
    return isinstance(value, int | float)


def main() -> None:
    """Read the order and the rows, and be the site's worker; the last report says how it ended."""
    stop = stop_on_signals()
    source, reports = sys.stdin.buffer, _own_stdout()
    order = Order.decode(source.readline())
    logs.configure(
        "json", verbose=bool(order.settings.get("verbose")), part="worker", fields={"worker": order.site}
    )
    reporter = Reporter(order, reports, stop)
    try:
        _work(order, source, reporter, stop)
    except FluffleError as error:
        log.warning("this site cannot go on", because=str(error))
        reporter.tell(error=str(error))
    except Exception as error:
        # A fault, after which Spark starts the site again: the task tells the driver what it was.
        reporter.tell(error=f"{type(error).__name__}: {error}")
        raise


def _own_stdout() -> BinaryIO:
    """Return standard output for reports; whatever else prints to it goes to standard error from now on."""
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "wb")


def _work(order: Order, source: BinaryIO, reporter: Reporter, stop: StopSignal) -> None:
    with pa.ipc.open_stream(source) as batches:
        rows = SiteRows(order.features, order.label).add_all(batches)
    with tempfile.TemporaryDirectory(prefix="fluffle-") as folder:
        is_working = _stop_when_closed(source, folder)
        unpack(order.code, Path(folder) / "task")
        task = _task_with(order, rows)
        reporter.tell(rows=rows.rows)
        settings = dict(order.settings)
        if order.data_table:
            settings["config"] = Path(folder) / "data.toml"
            settings["config"].write_text(order.data_table, encoding="utf-8")
        is_working.set()
        for attempt in count(1):
            try:
                result = run_worker(task, stop=stop, event_sink=reporter, **settings)
            except (NameTaken, SpoolInUse) as error:
                # Spark runs this site twice at once, or an attempt that it has given up still ends.
                say = log.info if attempt == 1 else log.debug
                say("another attempt of this site is at work: waiting for it to end", because=str(error))
                if stop.wait(min(attempt * RETRY_AFTER_S, LONGEST_WAIT_S)):
                    return
            else:
                reporter.tell(ended=result.ended_by, refused=result.refused)
                return


def _stop_when_closed(source: BinaryIO, folder: str) -> threading.Event:
    """Stop this process, as SIGTERM does, when its Spark task closes the pipe or dies.

    Before the returned event is set it ends at once: there is nothing to publish, and nothing interrupts the
    import of TensorFlow. Its `folder` is removed then.
    """
    is_working = threading.Event()

    def wait() -> None:
        # Not through the buffer, whose lock a thread that reads would still hold at the end of this process.
        while os.read(source.fileno(), 1):
            pass
        if not is_working.is_set():
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
        log.info("the Spark task has ended: stopping, what is trained is published first")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="spark task", daemon=True).start()
    return is_working


def _task_with(order: Order, rows: SiteRows) -> Task:
    """Return the task with this site's rows as its training data."""
    parts = rows.parts()
    task = load_task(order.task)
    takes_data = getattr(task, "with_train_data", None)
    if takes_data is None:
        raise TaskError(
            f"the task {order.task!r} cannot take rows from Spark: make it a KerasTask, or give it a method "
            "with_train_data(train_data) that returns a task with this function instead of its own"
        )
    if isinstance(task, TabularTask):
        return with_named_rows(task, order.features, order.label, parts)
    has_steps = isinstance(task, TaskWithSteps) and task.data_steps is not None
    if rows.missing and not has_steps and not order.data_table:
        name, missing = next(iter(rows.missing.items()))
        raise TaskError(
            f"the column {name!r} has {missing} missing values in {rows.rows} rows, and the task takes no "
            "data steps: fill them in Spark, drop the rows, or let "
            'KerasTask(data=DataSteps(impute="median")) fill them'
        )
    found: Task = takes_data(lambda _site: parts)
    return found


if __name__ == "__main__":
    main()
    # TensorFlow takes more than a second to be taken down, for which the Spark task would wait.
    sys.stderr.flush()
    os._exit(0)
