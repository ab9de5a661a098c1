"""A run of these tests that is interrupted leaves no RabbitMQ behind, nor a part of a federation."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from federation import ROOT, TESTS, wait_until

from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import is_free

pytestmark = pytest.mark.long

A_TEST = """
import time
from pathlib import Path
from federation import Federation

def test_that_takes_long(node, federation, tmp_path):
    with Federation(federation, node.amqp_url, tmp_path) as running:
        running.aggregator("a").wait_for("standing by")
        Path({told!r}).write_text(str(node.folder))
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGINT, "pytest"),
        (signal.SIGTERM, "pytest"),
        (signal.SIGKILL, "pytest"),
        (signal.SIGKILL, "its worker"),
    ],
)
def test_an_interrupted_run_of_the_tests_leaves_nothing_running(
    number: signal.Signals, whom: str, tmp_path: Path
) -> None:
    told = tmp_path / "folder-of-the-node"
    (tmp_path / "test_long.py").write_text(A_TEST.format(told=str(told)))
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += ["-p", "conftest", "-p", "no:cacheprovider", "-n", "1", str(tmp_path / "test_long.py")]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as run:
        try:
            wait_until(lambda: told.exists() or run.poll() is not None, "a node and an aggregator")
            assert told.exists(), run.communicate()[0]
            started = psutil.Process(run.pid).children(recursive=True)
            node = BrokerNode.load(Path(told.read_text()))
            assert node.is_running
            assert any("fluffle_aggregator" in process.cmdline() for process in started)

            workers = [process for process in started if process.ppid() == run.pid and is_python(process)]
            os.kill(run.pid if whom == "pytest" else workers[0].pid, number)
            if whom != "pytest":
                run.kill()

            wait_until(lambda: not node.is_running, "the end of RabbitMQ", deadline_s=30)
            ports = [*node.ports, node.epmd_port]
            wait_until(lambda: all(map(is_free, ports)), "the end of epmd", deadline_s=30)
            wait_until(lambda: not any(map(is_alive, started)), "the end of all", deadline_s=30)
        finally:
            run.kill()
            run.communicate()


def is_python(process: psutil.Process) -> bool:
    return "python" in process.name()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
