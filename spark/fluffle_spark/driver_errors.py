"""What Spark raises at the driver, in one sentence."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, PySparkException

from fluffle.errors import ConfigError, FluffleError


class SparkFailed(FluffleError):
    """Spark could not run the sites; the text is in the words of Fluffle, or has Spark's own last line."""


@contextmanager
def in_one_sentence(cancelled_because: Callable[[], str] = str) -> Iterator[None]:
    """Turn an error of Spark into a FluffleError.

    `cancelled_because` says why Fluffle itself has cancelled the job, and returns "" if it has not.
    """
    try:
        yield
    except FluffleError:
        raise
    except (PySparkException, Py4JError) as error:
        if because := cancelled_because():
            raise SparkFailed(because) from error
        text = str(error)
        if isinstance(error, AnalysisException):
            # The first line says why Spark refuses the query; its plan follows.
            text = text.partition("\n")[0]
        raise _translated(text) from error


def _translated(text: str) -> FluffleError:
    if found := re.search(r"No module named '(fluffle\w*|pyarrow|keras|tensorflow)'", text):
        return ConfigError(
            f"the executors have no {found[1]}: install fluffle[spark,worker] in the Python that "
            "PYSPARK_PYTHON names there, or send an environment with --archives"
        )
    if found := re.search(
        r"Python in worker has different version:? (\S+) than that in driver:? ([\d.]+)", text
    ):
        return ConfigError(
            f"the executors have Python {found[1].rstrip(',')} and the driver {found[2].rstrip('.')}: set "
            "PYSPARK_PYTHON to the same version on both"
        )
    if found := re.search(r'Cannot run program "(\S+)": error=\d+, ([\w ]+)', text):
        return ConfigError(
            f"the executors cannot run the Python that PYSPARK_PYTHON names, {found[1]}: {found[2]}. Install "
            "it there, or send it with --archives; a venv needs the Python that made it, at the same path"
        )
    if "cancelled" in text and "Job" in text:
        return SparkFailed("the Spark job was cancelled: the workers have published what they had finished")
    if found := re.search(r"SiteDied: (.*)", text):
        return SparkFailed(found[1])
    if found := re.search(r"SafeModeException|Name node is in safe mode", text):
        return SparkFailed(
            "HDFS is in safe mode: wait until it has left it, or run `hdfs dfsadmin -safemode leave`"
        )
    if found := re.search(r"java\.net\.\w*Exception: (.*?)(?:;|\n|$)", text):
        return SparkFailed(f"Spark cannot reach its data or its cluster: {found[1]}")
    causes = [
        line.strip()
        for line in text.splitlines()
        if re.match(r"\s*(Caused by: )?[\w.]+(Error|Exception): ", line)
    ]
    return SparkFailed(f"Spark could not run the sites: {(causes or text.strip().splitlines() or ['?'])[-1]}")
