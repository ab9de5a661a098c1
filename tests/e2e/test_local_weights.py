"""A site writes its own model: the federation's newest version with the site's local weights."""

import os
from pathlib import Path

import numpy as np
import pytest
from federation import ROOT, TESTS, Federation

from fluffle.safetensors_file import read_model
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "tasks.grouped_task:task"


def test_each_worker_exports_the_shared_model_with_its_own_local_weights(
    node: BrokerNode, tmp_path: Path, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [TESTS, ROOT])))
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = running.aggregator("leader", "--max-updates", "3", "--strategy", "fedasync")
        worker = running.worker(0, "--delay", "0.1", sites=2)
        codes = [worker.wait_for_exit(), leader.wait_for_exit()]
        export = ("model", "export", "--out", "own.keras", "--task", TASK)
        of_nobody = running.fluffle(*export)
        own = running.fluffle(*export, "--worker", "site-0")
        refused = [
            running.fluffle(*export, "--worker", "site-7"),
            running.fluffle(*export, "--worker", "site-0", "--out", "own.safetensors"),
            running.fluffle(
                *("model", "export", "--out", "own.keras", "--task", "examples.numpy_task:task"),
                *("--worker", "site-0"),
            ),
        ]
        final = running.newest()
    rounds = len(worker.events("round trained"))
    written = read_model(tmp_path / "own.keras")

    assert codes == [0, 0]
    assert own.returncode == 0, own.stderr
    assert of_nobody.returncode == 0, of_nobody.stderr
    assert "Each site keeps its own head: in this file they have their initial values" in of_nobody.stderr
    assert "initial values" not in own.stderr
    # This task's head counts the rounds of its site.
    assert written["head"].tolist() == [rounds, rounds]
    assert np.array_equal(written["w"], final.weights["w"])
    assert [each.returncode for each in refused] == [2, 2, 2]
    assert "site-7/local.safetensors: export on the machine of site-7, with its --spool" in refused[0].stderr
    assert "only a .keras file holds local weights, not own.safetensors" in refused[1].stderr
    assert "the task examples.numpy_task:task has no local weights: leave out --worker" in refused[2].stderr
