"""Which version the command line calls best: one by a metric with a direction, else none."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import commit
from builders import a_version, an_evaluation

from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long


def model(
    node: BrokerNode, topology: Topology, *arguments: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fluffle_cli.main", "model", *arguments],
        env=os.environ | {"FLUFFLE_BROKER_URL": node.amqp_url, "FLUFFLE_FEDERATION": topology.federation},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )


def test_the_best_version_is_named_with_its_direction_and_there_is_none_without_one(
    node: BrokerNode, topology: Topology, tmp_path: Path
) -> None:
    evaluated = [
        replace(
            a_version(number), federation=topology.federation, evaluation=an_evaluation(number, {"bleu": 0.5})
        )
        for number in (0, 1)
    ]
    by_rmse = replace(evaluated[1], version=2, best=an_evaluation(1, {"rmse": 0.5}), best_by="rmse:min")
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as broker:
        broker.declare(topology)
        commit(broker, topology, *evaluated)
        refused = model(node, topology, "export", "--version", "best", "--out", "b.safetensors", cwd=tmp_path)
        commit(broker, topology, by_rmse)

    listed = model(node, topology, "list", cwd=tmp_path)
    exported = model(node, topology, "export", "--version", "best", "--out", "b.safetensors", cwd=tmp_path)

    assert refused.returncode == 2
    assert "nothing says whether more or less bleu is better" in refused.stderr
    assert '--best "bleu:max" or "bleu:min"' in refused.stderr
    [best] = [line for line in listed.stdout.splitlines() if "best by rmse:min" in line]
    assert best.split()[0] == "1"
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "b.safetensors").exists()
