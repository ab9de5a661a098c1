"""`make demo-spark`, as somebody would who starts it, or stops it in the middle."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import ROOT, wait_until

MARK = "FLUFFLE_TEST_MARK"
DEADLINE_S = 400.0


@contextmanager
def demo(out: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the demo, which no process of it outlives, whatever ends it."""
    mark = uuid4().hex
    environment = os.environ | {"PYTHONPATH": str(ROOT / "examples"), MARK: mark}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "clothing_on_spark.demo", "--out", str(out)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
        assert process.poll() is not None
        assert list(marked(mark)) == []
    finally:
        for each in marked(mark):
            each.kill()


def marked(mark: str) -> Iterator[psutil.Process]:
    """Yield the processes that were started by one that had the mark in its environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


@pytest.mark.long
def test_the_demo_trains_four_shops_in_two_executors_and_draws_who_trained_what(
    java: str, tmp_path: Path
) -> None:
    out, output = tmp_path / "run", tmp_path / "output"

    with demo(out, output) as process:
        assert process.wait(DEADLINE_S) == 0, output.read_text()

    said = output.read_text()
    table = [
        line.split() for line in said.splitlines() if line.startswith(("bags", "dresses", "knit", "shoes"))
    ]
    assert [(site, rows) for site, rows, *_ in table] == [
        ("bags", "1,500"),
        ("dresses", "3,000"),
        ("knitwear", "9,000"),
        ("shoes", "5,000"),
    ]
    assert sorted(executor for *_, executor in table) == ["0", "0", "1", "1"]
    assert "done: accuracy>=0.86 held" in said
    picture = (out / "picture.svg").read_text()
    assert all(f">{site}, executor {executor}<" in picture for site, *_, executor in table)
    assert (out / "report" / "report.html").exists()
    assert not (out / "servers").exists()
    assert not [line for line in said.splitlines() if "WARN" in line or line.startswith("{")]


@pytest.mark.long
def test_ctrl_c_stops_the_demo_and_all_its_servers_and_workers(java: str, tmp_path: Path) -> None:
    out, output = tmp_path / "run", tmp_path / "output"

    with demo(out, output) as process:
        wait_until(
            lambda: process.poll() is not None or " of 4 workers are connected" in output.read_text(),
            "workers",
        )
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130, output.read_text()

    assert "Traceback" not in output.read_text()
    assert list((out / "logs" / "executors").rglob("stderr"))
