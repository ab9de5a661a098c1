"""The worker process of a Spark task, started as the task does it, and left alone by it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import wait_until

from fluffle_spark.order import Order, SiteReport
from fluffle_spark.site_task import SiteDied, run_site
from fluffle_spark.task_code import code_of

END_WITHIN_S = 10.0
SLOW_TO_IMPORT = """
import pathlib, time
pathlib.Path("begun").touch()
time.sleep(300)
"""


def test_a_process_whose_spark_task_is_gone_before_it_trains_ends_at_once_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, place = tmp_path / "temporary", tmp_path / "place"
    temporary.mkdir()
    place.mkdir()
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    monkeypatch.syspath_prepend(tmp_path)
    code = code_of("slow_to_import:task")
    order = Order(site="a", task="slow_to_import:task", features=("x",), label="y", settings={}, code=code)
    rows = pa.record_batch({"x": [1.0, 2.0], "y": [0, 1]})

    process = subprocess.Popen(
        [sys.executable, "-m", "fluffle_spark.site_process", "a"],
        cwd=place,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(order.encode())
    with pa.ipc.new_stream(process.stdin, rows.schema) as stream:
        stream.write_batch(rows)
    process.stdin.flush()
    wait_until((place / "begun").exists, "the import of the task")
    process.stdin.close()

    assert process.wait(END_WITHIN_S) == 0
    assert list(temporary.iterdir()) == []


def test_a_process_that_dies_while_its_rows_come_ends_its_task(tmp_path: Path) -> None:
    """In yahoo/TensorFlowOnSpark#288 feeding waited for ever for a process that had died."""
    batch = pa.record_batch({"x": [0.5] * 100_000, "y": [1] * 100_000})
    order = Order(site="north", task="t:task", features=("x",), label="y", settings={})

    def rows() -> Iterator[pa.RecordBatch]:
        yield batch
        [process] = [each for each in psutil.Process().children() if "north" in each.cmdline()]
        process.kill()
        for _ in range(100):
            yield batch

    ended: list[SiteReport] = []
    with pytest.raises(SiteDied, match=r"north ended with -9 .*: it was killed, often for lack of memory"):
        list(run_site(rows(), order, ended.append))
    assert ended == []
