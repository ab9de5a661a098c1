"""The Spark that tests get has executors of its own, which can be killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from pyspark.sql import SparkSession

from harness.federation import wait_until
from harness.spark import driver_pid, executors_of


def test_two_executors_share_the_work_and_a_killed_one_is_replaced(spark: SparkSession) -> None:
    wait_until(lambda: len(executors_of(driver_pid())) == 2, "two executors")
    first, second = executors_of(driver_pid())
    assert where_rows_are(spark) == [(first.number, 500), (second.number, 500)]

    os.kill(first.pid, signal.SIGKILL)

    wait_until(lambda: len({*executors_of(driver_pid())} - {first, second}) == 1, "a third executor")
    assert sum(rows for _, rows in where_rows_are(spark)) == 1000


def where_rows_are(spark: SparkSession) -> list[tuple[int, int]]:
    """Return the executors that counted 1000 rows, and how many each counted."""
    rows = spark.range(1000).repartition(2).mapInArrow(count, "executor long, rows long").collect()
    return sorted((row.executor, row.rows) for row in rows)


def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Say in which executor's folder this runs, and how many rows were there."""
    rows = sum(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict({"executor": [int(Path.cwd().name)], "rows": [rows]})
