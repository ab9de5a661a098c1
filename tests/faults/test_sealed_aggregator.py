"""An aggregator of a sealed federation: what it refuses at its start, and how much memory it takes."""

from pathlib import Path

import numpy as np
import pytest
from federation import Federation, assert_refused, wait_until
from real_history import write_initial_model
from sealing import KEY, OTHER_KEY

from fluffle.codecs.sealed import SealedVector
from fluffle.safetensors_file import write_model
from fluffle.sealed.parameters import SLOTS, bytes_of
from fluffle.sealed.plan import SEALED
from fluffle.sealed.public_file import SealedPublic, write_public
from fluffle.sealed.residues import pack, zeros
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from harness.process_memory import memory_bytes

FLAGS = [
    *("--sealed", "sealed.public", "--buffer-size", "2", "--buffer-timeout", "2"),
    *("--initial-model", "initial.safetensors"),
]
MB = 1_000_000
LARGE = 1_000_000


def begin(folder: Path) -> None:
    write_initial_model(folder)
    write_public(folder / "sealed.public", SealedPublic(KEY))


def test_a_model_that_is_too_large_is_refused_before_anybody_trains_it_with_the_sizes(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    begin(tmp_path)
    write_model(tmp_path / "initial.safetensors", {"kernel": np.zeros(LARGE, np.float32)})
    with Federation(federation, node.amqp_url, tmp_path) as running:
        aggregator = running.aggregator("first", *FLAGS, "--max-message-mib", "16")

        assert_refused(aggregator, "29.7 MiB", "an update takes 25.8 MiB", "seal only some tensors")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sealed", "other.public"], (f"is {OTHER_KEY}", f"begun with {KEY}")),
        (["--sealed-clip", "1"], ("sealed_clip is 1.0", "begun with 0.5")),
        (["--buffer-size", "5"], ("buffer_size is 5", "begun with 2")),
        (["--sealed-only", "kernel"], ("sealed_only is kernel", "begun with no pattern")),
    ],
    ids=["key", "clip", "buffer", "patterns"],
)
def test_no_aggregator_leads_with_another_key_or_other_settings(
    node: BrokerNode, tmp_path: Path, federation: str, flags: list[str], words: tuple[str, ...]
) -> None:
    begin(tmp_path)
    write_public(tmp_path / "other.public", SealedPublic(OTHER_KEY))
    with Federation(federation, node.amqp_url, tmp_path) as running:
        first = running.aggregator("first", *FLAGS)
        first.wait_for("leading")
        first.ask_to_stop()
        assert first.wait_for_exit() == 0

        assert_refused(running.aggregator("second", *FLAGS, *flags), *words)


def test_an_aggregator_of_a_million_sealed_parameters_takes_at_most_250_mb(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    begin(tmp_path)
    write_model(tmp_path / "initial.safetensors", {"kernel": np.zeros(LARGE, np.float32)})
    # What is encrypted does not matter here, and drawing so many numbers takes long.
    sealed = np.random.default_rng(0).integers(0, 1 << 53, zeros(SLOTS).shape, np.uint64)
    payload = memoryview(pack(sealed) * (bytes_of(LARGE) // bytes_of(SLOTS)))
    vector = SealedVector.read(LARGE, 0, payload)
    updates = 8
    with Federation(federation, node.amqp_url, tmp_path) as running:
        aggregator = running.aggregator("first", *FLAGS, "--max-updates", str(updates))
        aggregator.wait_for("leading")
        digest = running.newest().layout.digest
        with running.connect() as broker:
            for number in range(updates):
                update = WeightUpdate(
                    federation=running.name,
                    id=UpdateId(f"site-{number % 2}", "run", number // 2 + 1),
                    base_term=1,
                    base_version=0,
                    layout_digest=digest,
                    sends="delta",
                    codec=SEALED,
                    vector=vector,
                    examples=10,
                    key=KEY,
                )
                exchange = running.topology.updates_in.name
                broker.publish_as(update.id.worker, exchange, "", encode_update(update), {})
        peaks = [0]

        def has_ended() -> bool:
            peaks.append(max(peaks[-1], memory_bytes(aggregator.process.pid, "VmHWM")))
            return aggregator.process.poll() is not None

        wait_until(has_ended, "the end of the federation")

        assert running.newest().updates == updates
        assert 0 < peaks[-1] <= 250 * MB, f"{peaks[-1] / MB:.0f} MB"
