"""`fluffle model list` on a federation with large models reads none of them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brokers import commit
from builders import a_version

from fluffle.framing import record_digest
from fluffle.model import Layout, TensorSpec
from fluffle.rabbit import RabbitBroker
from fluffle.record_wire import version_pieces, without_weights
from fluffle.topology import MIB, Topology
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

PARAMETERS = 25_000_000
VERSIONS, WITH_MODEL = 100, 3
# Of CPU time beyond that of its start, which depends on how busy the machine is.
MOST_CPU_S, MOST_MEMORY_BYTES = 1.0, 100 * MIB
# The memory that wait4 reports is that of the tests, if that is more.
MEASURED = """
import atexit, pathlib, runpy, sys
status = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: status.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("fluffle_cli.main", run_name="__main__")
"""


def test_a_hundred_versions_of_100_mb_are_listed_in_a_second_and_100_mb(
    node: BrokerNode, topology: Topology, tmp_path: Path
) -> None:
    layout = Layout((TensorSpec("w", (PARAMETERS,), "float32"),))
    vector = np.zeros(PARAMETERS, np.float32)
    parent = ""
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as broker:
        broker.declare(topology)
        for number in range(VERSIONS):
            version = replace(
                a_version(number),
                federation=topology.federation,
                layout=layout,
                vector=vector,
                parent=parent,
                committed_at=1_700_000_000.0 + number,
            )
            start = version_pieces(version).start
            parent = record_digest(start)
            if number >= VERSIONS - WITH_MODEL:
                commit(broker, topology, version)
            else:
                # The retention of F.models has taken its model.
                broker.publish_unconfirmed(topology.records_in.name, "", without_weights(start))

    start_cpu_s, _ = usage_of("--help", node=node, topology=topology, out=tmp_path / "help")
    cpu_s, memory_bytes = usage_of(node=node, topology=topology, out=tmp_path / "listed")

    listed = (tmp_path / "listed").read_text()
    rows = [line.split()[0] for line in listed.splitlines() if "100.0 MB" in line]
    assert rows == [str(number) for number in range(VERSIONS)]
    assert "are missing" not in listed
    assert "older ones may no longer be there to export" in listed
    assert cpu_s - start_cpu_s < MOST_CPU_S
    assert memory_bytes < MOST_MEMORY_BYTES


def usage_of(*flags: str, node: BrokerNode, topology: Topology, out: Path) -> tuple[float, int]:
    """Run `fluffle model list`, and return the seconds of CPU and the most memory that it took."""
    status = out.with_suffix(".status")
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURED, str(status), "model", "list", *flags],
            env=os.environ | {"FLUFFLE_BROKER_URL": node.amqp_url, "FLUFFLE_FEDERATION": topology.federation},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, exit_status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(exit_status)
    assert process.returncode == 0, out.read_text()
    [most_kib] = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return usage.ru_utime + usage.ru_stime, int(most_kib) * 1024
