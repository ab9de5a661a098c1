"""What a power cut leaves: quorum queues are flushed before a confirm, streams are not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federation import Federation, Part, assert_every_confirmed_update_counts_once, wait_until

from fluffle.errors import ConnectionLost, StreamUnreadable, TopologyMissing
from fluffle.model_stream import best_at_hand, record_at_hand
from fluffle.record import Evaluation, ModelVersion, Rank
from fluffle.record_wire import encode_version
from fluffle_aggregator.best_keeper import BestKeeper
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

STREAMS = ("best", "closes", "models", "records")
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
        there = path.read_bytes()
        path.write_bytes(there[:300].ljust(len(there), b"\0"))


def folders_of_the_streams(node: BrokerNode) -> list[Path]:
    """Find where the node keeps the streams of the best version, of close records, models and records."""
    found = sorted(path for path in (node.folder / "data").rglob("stream/*") if path.is_dir())
    assert len(found) == len(STREAMS)
    assert all(stream in path.name for stream, path in zip(STREAMS, found, strict=True))
    return found


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
        with federation.connect() as broker:
            kept = encode_version(federation.newest())
            broker.publish(federation.topology.best_in.name, "", kept, {"kind": "version"})
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
        # A broken stream is only recreated when RabbitMQ has had time to open it.
        wait_until(lambda: newest_record(federation) == federation.newest().rank, "the newest record")
        aggregator.process.terminate()
        assert aggregator.wait_for_exit() == 0
        newest = federation.newest()
        assert_the_best_version_can_be_kept(federation, newest)
        assert_every_confirmed_update_counts_once(federation, newest)


def newest_record(federation: Federation) -> Rank | None:
    """Return the rank of the newest record; None while their stream cannot be read, or is being recreated."""
    try:
        with federation.connect() as broker:
            record = record_at_hand(broker, federation.topology)
    except (ConnectionLost, StreamUnreadable, TopologyMissing):
        return None
    return record.rank if record else None


def assert_the_best_version_can_be_kept(federation: Federation, newest: ModelVersion) -> None:
    """What a leader does when the stream of models is about to lose the best version works."""
    best = replace(newest, best=Evaluation(federation.name, "e", newest.version, {}), best_by="accuracy:max")
    with federation.connect() as broker:
        keeper = BestKeeper(broker, federation.topology, at_risk_bytes=-1)
        keeper.note_published(best)

        def is_kept() -> bool:
            keeper.keep_when_due(best)
            return keeper.kept == newest.version

        wait_until(is_kept, "the best version to be kept")
        assert best_at_hand(broker, federation.topology, newest.version) is not None


def last_committed(aggregator: Part) -> int:
    """Return the newest version that the aggregator has logged as committed, and acked the updates of."""
    return int(str(aggregator.events("version committed")[-1]["version"]))
