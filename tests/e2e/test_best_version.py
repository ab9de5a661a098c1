"""Which version the command line calls best: one by a metric with a direction, else none."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import commit
from builders import a_version, an_evaluation

from fluffle.rabbit import RabbitBroker
from fluffle.safetensors_file import read_model
from fluffle.topology import Topology
from fluffle_aggregator.best_keeper import BestKeeper
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


def test_the_best_version_is_exported_after_the_stream_of_models_has_lost_it(
    node: BrokerNode, topology: Topology, tmp_path: Path
) -> None:
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as broker:
        broker.declare(topology)
        keeper = BestKeeper(broker, topology, at_risk_bytes=1)
        for number in range(3):
            version = replace(
                a_version(number, values=[number] * 4),
                federation=topology.federation,
                best=an_evaluation(1, {"accuracy": 0.5}),
                best_by="accuracy:max",
            )
            commit(broker, topology, version)
            keeper.note_published(version)
        deadline = time.monotonic() + 30
        while broker.state(topology.best.name).messages == 0 and time.monotonic() < deadline:
            keeper.keep_when_due(version)
        broker.recreate_stream(topology.models)
        commit(broker, topology, version)

    exported = model(node, topology, "export", "--version", "best", "--out", "b.safetensors", cwd=tmp_path)

    assert exported.returncode == 0, exported.stderr
    assert read_model(tmp_path / "b.safetensors")["dense/kernel"].tolist() == [1.0] * 4
