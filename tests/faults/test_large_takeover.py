"""A standby takes over while more updates of a large model wait than it has room for."""

from pathlib import Path

import numpy as np
import pytest
from federation import Federation

from fluffle.rabbit.broker import INBOX_LIMIT_BYTES
from fluffle.safetensors_file import write_model
from fluffle_cli.node import BrokerNode
from harness.process_memory import memory_bytes
from harness.sending import send_from_one_base

pytestmark = pytest.mark.long

MB = 1_000_000
MODEL_BYTES = 40 * MB
BUFFER_SIZE = 5


def test_a_standby_takes_over_a_large_model_while_more_updates_wait_than_it_has_room_for(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    assert MODEL_BYTES > INBOX_LIMIT_BYTES
    weights = {"kernel": np.random.default_rng(0).standard_normal(MODEL_BYTES // 4, np.float32)}
    write_model(tmp_path / "initial.safetensors", weights)
    flags = ["--initial-model", "initial.safetensors", "--buffer-size", str(BUFFER_SIZE)]
    with Federation(federation, node.amqp_url, tmp_path) as running:
        leader = running.aggregator("first", *flags)
        leader.wait_for("leading")
        standby = running.aggregator("second", *flags)
        standby.wait_for("standing by")
        send_from_one_base(running, range(1, BUFFER_SIZE))

        leader.kill()
        standby.wait_for("leading")
        send_from_one_base(running, [BUFFER_SIZE])
        standby.wait_for("version committed")

        assert running.newest().updates == BUFFER_SIZE
        own = memory_bytes(standby.process.pid, "VmHWM") - memory_bytes(standby.process.pid, "RssFile")
        assert 0 < own <= 80 * MB + 4 * MODEL_BYTES
