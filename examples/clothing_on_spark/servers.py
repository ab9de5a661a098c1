"""RabbitMQ, HDFS and a Spark cluster on this machine, which end with the demo and leave their logs."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from fluffle_cli.node import BrokerNode
from harness.hdfs import Hdfs
from harness.spark import SparkCluster

LOOK_EVERY_S = 0.1
EXECUTORS = 2
# As many tasks can run at once as there are shops.
SLOTS = 2
# Spark's UI at any free port.
SETTINGS = {"spark.ui.enabled": "true", "spark.ui.port": "0"}


@dataclass(frozen=True, slots=True)
class Servers:
    """What runs on this machine."""

    node: BrokerNode
    hdfs: Hdfs
    spark: SparkSession


@contextmanager
def servers_in(folder: Path, logs: Path) -> Iterator[Servers]:
    """Start the servers with their files in `folder`, and stop them, whatever happens; the logs are kept."""
    (folder / "hdfs").mkdir(parents=True)
    cluster = SparkCluster.prepare(folder / "spark", executors=EXECUTORS, cores=SLOTS, settings=SETTINGS)
    node = BrokerNode.begin_start(folder / "rabbitmq")
    try:
        with Hdfs.start(folder / "hdfs") as hdfs, cluster.session("clothing on Spark") as spark:
            while not node.serves():
                time.sleep(LOOK_EVERY_S)
            yield Servers(node, hdfs, spark)
    finally:
        node.kill()
        for file, name in (
            ("rabbitmq/log/broker.log", "rabbitmq.log"),
            ("hdfs/namenode.log", "namenode.log"),
            ("hdfs/datanode.log", "datanode.log"),
            ("spark/work", "executors"),
        ):
            with suppress(FileNotFoundError):
                (folder / file).replace(logs / name)
        shutil.rmtree(folder)


@contextmanager
def stderr_to(file: Path) -> Iterator[None]:
    """Send the stderr of this process, and of those that it starts, to a file: Spark's log, for example."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("ab") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
