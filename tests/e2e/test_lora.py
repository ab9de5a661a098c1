"""A transformer with LoRA in a real federation: only what is trained travels."""

import os
from pathlib import Path

import numpy as np
import pytest
from brokers import all_versions
from federation import ROOT, TESTS, Federation
from tasks import lora_task

from fluffle.checked_task import CheckedTask
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "tasks.lora_task:task"


def test_workers_train_adapters_send_them_alone_and_the_exported_model_goes_on(
    node: BrokerNode, tmp_path: Path, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [TESTS, ROOT])))
    task = CheckedTask(lora_task.make_task(64))
    start = task.model()
    assert start.layout.frozen is not None
    whole_bytes = 4 * (start.layout.size + start.layout.frozen.parameters)

    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = running.aggregator(
            "leader", "--max-updates", "8", "--buffer-size", "2", "--local-epochs", "2"
        )
        workers = [running.worker(site, sites=2) for site in range(2)]
        codes = [part.wait_for_exit() for part in [*workers, leader]]
        with running.connect() as broker:
            final = list(all_versions(broker, running.topology))[-1]
        exported = running.fluffle("model", "export", "--out", "lora.keras", "--task", TASK)
    sizes = [line["size_bytes"] for worker in workers for line in worker.events("update published")]
    loaded = task.load(tmp_path / "lora.keras")

    assert codes == [0, 0, 0]
    assert final.updates >= 8
    assert max(map(int, map(str, sizes))) < 0.1 * whole_bytes
    assert final.vector.size == start.layout.size < 0.1 * whole_bytes / 4
    assert exported.returncode == 0, exported.stderr
    assert loaded.layout == final.layout
    assert all(np.array_equal(loaded.weights[name], final.weights[name]) for name in final.weights)
    assert task.evaluate(loaded.weights)["loss"] < task.evaluate(start.weights)["loss"]
