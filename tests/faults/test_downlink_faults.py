"""Rounded versions with real processes: the leader dies, and the exact model goes on."""

from pathlib import Path

import pytest
from federation import Federation, assert_every_confirmed_update_counts_once

from fluffle.model_stream import all_stored
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_record
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

ROUNDED = ["--downlink-codec", "int8", "--codec", "int8", "--buffer-size", "2", "--max-versions", "15"]


def test_a_killed_leader_whose_versions_are_rounded_leaves_one_exact_history_behind(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        leader = running.aggregator("leader", *ROUNDED)
        leader.wait_for("leading")
        exported = running.fluffle("model", "export", "--out", "beginning.safetensors")
        standby = running.aggregator("standby", *ROUNDED)
        standby.wait_for("standing by")
        workers = [running.worker(site, "--delay", "0.1", sites=2) for site in range(2)]
        leader.wait_for("version committed", 3)

        leader.kill()

        codes = [part.wait_for_exit() for part in (standby, *workers)]
        with running.connect() as broker:
            history = list(all_stored(broker, running.topology))
            with broker.peek(running.topology.head.name) as bodies:
                records = list(map(decode_record, bodies))
        kept = max((one for one in records if isinstance(one, ModelVersion)), key=lambda one: one.rank)
        final = history[-1].version

        assert codes == [0, 0, 0]
        assert "It is rounded: versions travel in int8" in exported.stderr
        assert {one.version.codec for one in history[:-1]} == {"int8"}
        assert [one.version.parent for one in history[1:]] == [one.digest for one in history[:-1]]
        assert (final.codec, final.finished, final.rank) == ("float32", "15 versions were made", kept.rank)
        assert final.vector.tobytes() == kept.vector.tobytes()
        assert_every_confirmed_update_counts_once(running, final)
