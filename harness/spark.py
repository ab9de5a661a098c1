"""A Spark cluster on this machine for tests and demos: executors are processes of their own, on loopback.

`scripts/setup.sh spark` brings it. Spark finds its whole configuration in the folder that SPARK_HOME names:
`spark-submit` needs no flag for it.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
import pyspark
from pyspark import SparkContext
from pyspark.sql import SparkSession

from fluffle_cli.rabbitmq_server import LOOPBACK
from harness.federation import ROOT, wait_until
from harness.java import find_java

STOP_TIMEOUT_S = 20.0
EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
# What a process of Spark needs beside conf/ and work/, which are the folder's own.
_PARTS = ("bin", "jars", "python", "sbin")
_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_LOG4J = """rootLogger.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n
"""


@dataclass(frozen=True, slots=True)
class Executor:
    """One executor: its number in Spark's UI, and the process that can be killed."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class SparkCluster:
    """A folder from which Spark starts `local-cluster[executors,cores,memory]`, for one session at a time.

    The executors' logs are in `folder/work`, and the event logs in `folder/events`.
    """

    folder: Path

    @classmethod
    def prepare(
        cls,
        folder: Path,
        *,
        executors: int = 2,
        cores: int = 1,
        memory_mb: int = 1024,
        settings: dict[str, str] | None = None,
    ) -> "SparkCluster":
        """Write the configuration into an empty folder; `settings` are more of Spark's, and win.

        Raises ConfigError if there is no Java for Spark.
        """
        find_java()
        folder = folder.resolve()
        for name in ("conf", "events"):
            (folder / name).mkdir(parents=True)
        home = Path(pyspark.__file__).parent
        for part in _PARTS:
            (folder / part).symlink_to(home / part)
        chosen = {
            "spark.master": f"local-cluster[{executors},{cores},{memory_mb}]",
            "spark.driver.memory": "512m",
            "spark.executor.memory": f"{memory_mb}m",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.compress": "false",
            "spark.eventLog.dir": (folder / "events").as_uri(),
            "spark.sql.warehouse.dir": (folder / "warehouse").as_uri(),
            # Quick to start, which matters more here than how fast a long job runs.
            "spark.driver.extraJavaOptions": _JVM,
            "spark.executor.extraJavaOptions": _JVM,
            # One for each core, and not the 200 that a large cluster wants.
            "spark.sql.shuffle.partitions": str(executors * cores),
        } | (settings or {})
        lines = "".join(f"{name} {value}\n" for name, value in chosen.items())
        (folder / "conf" / "spark-defaults.conf").write_text(lines)
        (folder / "conf" / "log4j2.properties").write_text(_LOG4J)
        return cls(folder)

    @property
    def work(self) -> Path:
        """The folder with a folder for each executor, in which its log is called stderr."""
        return self.folder / "work"

    def events_text(self) -> Iterator[str]:
        """Yield the text of each event log: the configuration, and all that Spark's UI shows."""
        for file in (self.folder / "events").rglob("*"):
            if file.is_file():
                yield file.read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a Spark of this cluster starts."""
        paths = [each for each in sys.path if Path(each).is_relative_to(ROOT) and "site-packages" not in each]
        return {
            "SPARK_HOME": str(self.folder),
            "SPARK_LOCAL_IP": LOOPBACK,
            "SPARK_LOCAL_HOSTNAME": LOOPBACK,
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            # Where executors find the modules of the checkout, and tasks of the tests.
            "PYTHONPATH": os.pathsep.join(paths),
        }

    @property
    def spark_submit(self) -> str:
        """The command that starts a program as this cluster's driver."""
        return str(self.folder / "bin" / "spark-submit")

    @contextmanager
    def session(self, name: str) -> Iterator[SparkSession]:
        """Yield a session, of which a process can have one at a time; no process of it is left behind."""
        on_interrupt = signal.getsignal(signal.SIGINT)
        with patch.dict(os.environ, self.environment):
            session = SparkSession.builder.appName(name).getOrCreate()
        started = [psutil.Process(driver_pid())]
        try:
            yield session
        finally:
            started += started[0].children(recursive=True)
            session.stop()
            _end_java()
            signal.signal(signal.SIGINT, on_interrupt)

        def is_over() -> bool:
            return not any(map(_is_alive, started)) and not any(self._processes())

        wait_until(is_over, "the end of Spark", deadline_s=STOP_TIMEOUT_S)

    def _processes(self) -> Iterator[psutil.Process]:
        """Yield what works in the folder of an executor, which may be gone itself."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if _is_alive(process) and Path(process.cwd()).is_relative_to(self.folder / "work"):
                    yield process


def driver_pid() -> int:
    """Return the process of this process's session: the Java that is Spark's driver."""
    return int(SparkContext._gateway.proc.pid)


def executors_of(driver: int) -> list[Executor]:
    """Return the executors that a driver has now; a killed one is missing until Spark starts another."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if EXECUTOR in words:
                found.append(Executor(int(words[words.index("--executor-id") + 1]), process.pid))
    return sorted(found, key=lambda executor: executor.number)


def _end_java() -> None:
    # PySpark keeps it for the next session, with the environment of the first.
    gateway = SparkContext._gateway
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(STOP_TIMEOUT_S)
    SparkContext._gateway = SparkContext._jvm = None


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
