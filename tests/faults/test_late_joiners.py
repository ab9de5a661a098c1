"""Ten workers that join at once, late, a federation whose model is large."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_layout, a_version

from fluffle.model_stream import newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.record_wire import encode_version
from fluffle.topology import STREAM_SEGMENT_BYTES, Topology
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

# 200 MB, which is 50 million parameters, in `make soak`; half of it does for everyday.
MODEL_BYTES = int(os.environ.get("FLUFFLE_TEST_MODEL_MB", "100")) * 1_000_000
JOINERS = 10
VERSIONS = 4
# Nothing may be left that a reader would find for having come in good time.
IDLE_S = 2.0
HEARTBEAT_S = 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[BrokerNode]:
    """A node of its own: its log tells of every alarm, however short, and its data leaves with it."""
    with BrokerNode.start(tmp_path / "broker", management=False) as started:
        yield started


def publish_versions(node: BrokerNode, topology: Topology) -> None:
    layout = a_layout(MODEL_BYTES // 4)
    with RabbitBroker(node.amqp_url, name="aggregator", heartbeat_s=HEARTBEAT_S) as broker:
        broker.declare(topology)
        for number in range(VERSIONS):
            version = replace(
                a_version(number, layout=layout), vector=np.full(layout.size, number, np.float32)
            )
            broker.publish(topology.versions_in.name, "", encode_version(version), {"kind": "version"})


def test_ten_late_joiners_at_once_get_the_newest_version_of_a_large_model_and_raise_no_alarm(
    node: BrokerNode, topology: Topology
) -> None:
    assert MODEL_BYTES > STREAM_SEGMENT_BYTES  # each version begins a segment
    publish_versions(node, topology)
    time.sleep(IDLE_S)
    all_are_here = threading.Barrier(JOINERS)

    def join(number: int) -> int:
        with RabbitBroker(node.amqp_url, name=f"joiner {number}", heartbeat_s=HEARTBEAT_S) as broker:
            all_are_here.wait()
            # Reading it checks the vector's checksum; then it is dropped, for there are ten of them.
            version = newest_version(broker, topology, stop=threading.Event())
        assert version is not None
        return version.version

    with ThreadPoolExecutor(JOINERS) as pool:
        found = list(pool.map(join, range(JOINERS)))

    assert found == [VERSIONS - 1] * JOINERS
    assert "alarm set" not in (node.folder / "log" / "broker.log").read_text()
