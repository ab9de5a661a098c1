"""What tests of data and engines share: a real HDFS, a real S3 server, and a real Spark.

A module that imports pyspark begins with `pytest.importorskip("pyspark")`.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from harness.spark import SparkCluster

from fluffle.errors import ConfigError
from harness.hdfs import Hdfs
from harness.java import find_java
from harness.s3 import S3Server


@contextmanager
def skipped_outside_ci() -> Iterator[None]:
    """Skip the test where something is not installed, unless this is CI, which installs everything."""
    try:
        yield
    except ConfigError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def java() -> str:
    """The path of a Java for Spark and HDFS: on a machine without, tests are skipped, and in CI they fail."""
    with skipped_outside_ci():
        return find_java()


@pytest.fixture(scope="session")
def hdfs(java: str) -> Iterator[Hdfs]:
    """One HDFS for all tests that do it no harm, each in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fluffle-hdfs-") as folder:
        with skipped_outside_ci():
            started = Hdfs.start(Path(folder))
        with started:
            yield started


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for all tests that do it no harm, each with a prefix of its own."""
    with tempfile.TemporaryDirectory(prefix="fluffle-s3-") as folder, S3Server.start(Path(folder)) as started:
        yield started


@pytest.fixture(scope="session")
def spark_cluster(java: str) -> Iterator["SparkCluster"]:
    """The folders of a Spark with two executors of one core each, and the logs in them."""
    from harness.spark import SparkCluster

    with tempfile.TemporaryDirectory(prefix="fluffle-spark-") as folder:
        yield SparkCluster.prepare(Path(folder) / "spark")


@pytest.fixture(scope="session")
def spark(spark_cluster: "SparkCluster") -> Iterator["SparkSession"]:
    """One session for all tests: a process can have one at a time. A killed executor is replaced."""
    with spark_cluster.session("tests") as session:
        yield session
