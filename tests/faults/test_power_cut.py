"""What a power cut leaves: quorum queues are flushed before a confirm, streams are not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Federation, Part, assert_every_confirmed_update_counts_once

from fluffle.model_stream import record_at_hand
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

FLAGS = ["--buffer-size", "2", "--heartbeat-s", "2"]


def an_older_copy(stream: Path, older: Path) -> None:
    """Only what was flushed some versions ago is there."""
    shutil.rmtree(stream)
    shutil.copytree(older, stream)


def nothing(stream: Path, _older: Path) -> None:
    """Files were made, but nothing was flushed into them."""
    for path in stream.iterdir():
        path.write_bytes(b"")


def zeros(stream: Path, _older: Path) -> None:
    """The files have their lengths, but their blocks were never written: RabbitMQ cannot open the stream."""
    for path in stream.glob("*.segment"):
        path.write_bytes(path.read_bytes()[:300] + bytes(path.stat().st_size - 300))


def folders_of_the_streams(node: BrokerNode) -> list[Path]:
    """Find where the node keeps the stream of models and the stream of records."""
    both = sorted(path for path in (node.folder / "data").rglob("stream/*") if path.is_dir())
    assert ["models" in path.name for path in both] == [True, False]
    return both


@pytest.mark.parametrize("what_is_left", [an_older_copy, nothing, zeros], ids=lambda damage: damage.__name__)
def test_after_a_power_cut_no_acked_update_is_missing_and_readers_find_the_newest_model(
    tmp_path: Path, what_is_left: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "federation"
    folder.mkdir()
    with (
        BrokerNode.start(tmp_path / "broker", management=False) as node,
        Federation("power-cut", node.amqp_url, folder, task="numpy_task:task") as federation,
    ):
        aggregator = federation.aggregator("first", *FLAGS)
        aggregator.wait_for("leading")
        workers = [federation.worker(site, "--delay", "0.1") for site in range(2)]
        aggregator.wait_for("version committed", 3)
        for stream in folders_of_the_streams(node):
            shutil.copytree(stream, tmp_path / stream.name)
        aggregator.wait_for("version committed", 6)

        node.kill()
        committed_before = len(aggregator.events("version committed"))
        acked_before = last_committed(aggregator)
        for stream in folders_of_the_streams(node):
            what_is_left(stream, tmp_path / stream.name)
        node.restart()

        aggregator.wait_for("leading", 2)
        assert int(str(aggregator.events("leading")[1]["version"])) >= acked_before
        aggregator.wait_for("version committed", committed_before + 2)
        late_joiner = federation.worker(2)
        late_joiner.wait_for("update published")
        for part in [*workers, late_joiner]:
            part.process.terminate()
            assert part.wait_for_exit() == 0
        aggregator.process.terminate()
        assert aggregator.wait_for_exit() == 0

        newest = federation.newest()
        with federation.connect() as broker:
            record = record_at_hand(broker, federation.topology)
        assert record is not None
        assert record.rank == newest.rank
        assert_every_confirmed_update_counts_once(federation, newest)


def last_committed(aggregator: Part) -> int:
    """Return the newest version that the aggregator has logged as committed, and acked the updates of."""
    return int(str(aggregator.events("version committed")[-1]["version"]))
