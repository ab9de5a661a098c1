"""Ctrl-C at the driver ends the workers inside the executors, as it does in a notebook's cell."""

import os
import signal
import threading
from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import Federation, wait_until
from on_spark import TASK, digits, site_processes, wait_for_updates
from pyspark.sql import SparkSession

from fluffle_cli.node import BrokerNode
from fluffle_spark import federate
from harness.spark import SparkCluster

END_WITHIN_S = 30.0


def test_after_ctrl_c_no_job_and_no_worker_goes_on(
    spark: SparkSession, spark_cluster: SparkCluster, node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    """With PySpark alone the job would go on, as in jupyter-server/enterprise_gateway#1112.

    Its handler asks Java to cancel over the connection on which its own thread waits for the job.
    """

    def interrupt() -> None:
        wait_for_updates(spark_cluster.work, federation, 1, sites=2)
        os.kill(os.getpid(), signal.SIGINT)

    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as started:
        started.aggregator("lead")
        thread = threading.Thread(target=interrupt)
        thread.start()

        with pytest.raises(KeyboardInterrupt):
            federate(
                digits(spark),
                task=TASK,
                federation=federation,
                broker_url=node.amqp_url,
                features="pixels",
                label="digit",
                site_column="ward",
                delay=0.3,
            )

        thread.join()
        tracker = spark.sparkContext.statusTracker()
        wait_until(lambda: not tracker.getActiveJobsIds(), "the end of the job", deadline_s=END_WITHIN_S)
        wait_until(lambda: not site_processes(spark_cluster.work), "the workers", deadline_s=END_WITHIN_S)
