"""Parts as a container platform runs them: any user of group 0, without a home, on read-only files."""

import json
import os
import shutil
from pathlib import Path

import pytest
from federation import Federation

from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

NOBODYS_ID = "54321"


def a_stranger_in(folder: Path) -> tuple[str, ...]:
    """Return what starts a command in a folder, without HOME, and if root may do so as a user without a name.

    This user may read every file, since the tests' Python may lie in a folder of root's, and write none
    that the group 0 may not write.
    """
    there = ("sh", "-c", f'cd {folder} && unset HOME && exec "$@"', "sh")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return there
    reading = [f"--{which}-caps=-all,+dac_read_search" for which in ("inh", "ambient")]
    ids = [f"--reuid={NOBODYS_ID}", "--regid=0", "--clear-groups"]
    return (*there, "setpriv", *ids, *reading)


def test_a_federation_runs_as_any_user_of_group_0_without_a_home_and_logs_json_only(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    (tmp_path / "read-only").mkdir(mode=0o555)
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o770)
    stranger = a_stranger_in(tmp_path / "read-only")

    with Federation(federation, node.amqp_url, tmp_path, prefix=stranger) as running:
        parts = [
            running.aggregator("leader", "--max-versions", "3", "--buffer-size", "1"),
            running.worker(0, "--spool", str(tmp_path / "spool")),
            running.evaluator(),
        ]

        assert [part.wait_for_exit() for part in parts] == [0, 0, 0]
        assert running.newest().version >= 3

    for part in parts:
        lines = [json.loads(line) for line in part.log.read_text().splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        assert all({"time", "level", "part", "event"} <= line.keys() for line in lines)
    assert list((tmp_path / "read-only").iterdir()) == []


def test_a_worker_that_may_not_write_its_spool_says_so_in_one_json_line(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    (tmp_path / "file").touch()
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        worker = running.worker(0, "--spool", str(tmp_path / "file" / "spool"))

        assert worker.wait_for_exit() == 2
        last = json.loads(worker.log.read_text().splitlines()[-1])
        assert "give --spool a folder that this user may write to" in last["event"]
