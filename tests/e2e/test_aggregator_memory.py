"""The aggregator's memory: at most 80 MB of its own and three times a large model, for any buffer."""

from pathlib import Path

import numpy as np
import pytest
from federation import Federation, wait_until

from fluffle.codecs.floats import Float32Vector
from fluffle.safetensors_file import write_model
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from harness.process_memory import memory_bytes
from harness.strategy_flags import strategy_flags

pytestmark = pytest.mark.long

MB = 1_000_000
# Larger than the messages that a connection takes in ahead.
PARAMETERS = 12_000_000
BUFFER_SIZE = 5
ROUNDS = 2


@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync"])
def test_peak_memory_is_bounded_by_the_model_and_not_by_the_buffer(
    node: BrokerNode, tmp_path: Path, federation: str, strategy: str
) -> None:
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.standard_normal(PARAMETERS, np.float32)}
    write_model(tmp_path / "initial.safetensors", weights)
    with Federation(federation, node.amqp_url, tmp_path) as running:
        aggregator = running.aggregator(
            "leader", "--initial-model", "initial.safetensors",
            *strategy_flags(strategy, BUFFER_SIZE), "--max-updates", str(ROUNDS * BUFFER_SIZE),
        )  # fmt: skip
        aggregator.wait_for("leading")
        program_files = memory_bytes(aggregator.process.pid, "RssFile")
        layout_digest = running.newest().layout.digest

        with running.connect() as broker:
            for sequence in range(1, ROUNDS * BUFFER_SIZE + 1):
                update = WeightUpdate(
                    federation=running.name,
                    id=UpdateId("site", "run", sequence),
                    base_term=1,
                    base_version=0,
                    layout_digest=layout_digest,
                    sends="delta" if strategy == "fedbuff" else "weights",
                    codec="float32",
                    vector=Float32Vector.of(rng.standard_normal(PARAMETERS, np.float32)),
                    integers=b"",
                    examples=10,
                )
                exchange = running.topology.updates_in.name
                broker.publish_as("site", exchange, "", encode_update(update), {})
        peaks = [0]

        def has_ended() -> bool:
            peaks.append(max(peaks[-1], memory_bytes(aggregator.process.pid, "VmHWM")))
            return aggregator.process.poll() is not None

        wait_until(has_ended, "the end of the federation")

        assert running.newest().updates == ROUNDS * BUFFER_SIZE
        assert 0 < peaks[-1] - program_files <= 80 * MB + 3 * 4 * PARAMETERS
