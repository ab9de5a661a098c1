"""Error feedback with real processes: through SIGKILL and refusals, each round's delta counts once."""

from pathlib import Path

import numpy as np
import pytest
from brokers import all_versions
from federation import Federation, applied_ids, wait_until
from gates import allow
from relay import Relay
from tasks.gated_sum_task import DELTA

from fluffle_cli.node import BrokerNode
from fluffle_worker.spool import open_spool

pytestmark = pytest.mark.long

TOP_K = ["--strategy", "fedbuff", "--buffer-size", "1", "--staleness", "constant", "--codec", "topk:0.3"]


def applied(federation: Federation) -> set[int]:
    """Return the numbers of the updates that the newest version contains, or remembers as such."""
    return {one.sequence for one in applied_ids(federation.newest())}


def test_what_a_killed_worker_sent_left_out_and_got_back_counts_once(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.gated_sum_task:task") as running:
        allow(running, 0)
        leader = running.aggregator("leader", *TOP_K)
        with Relay(node.amqp_port) as relay:
            url = node.amqp_url.replace(f":{node.amqp_port}/", f":{relay.port}/")
            worker = running.worker(0, "--broker-url", url)
            wait_until((tmp_path / "begun-1").exists, "the beginning of round 1")
            relay.hold_answers()
            allow(running, 1)
            leader.wait_for("version committed")
            # The broker has update 1 and the model contains it, and the worker knows nothing of that.
            worker.kill()
        leader.kill()
        strict = running.aggregator("strict", *TOP_K, "--limit-examples", "1")
        reborn = running.worker(0)
        # Update 1 comes again, and then 2.
        strict.wait_for("refused", 2)
        reborn.kill()
        strict.kill()

        allow(running, 1000)
        running.aggregator("mild", *TOP_K)
        again = running.worker(0)
        wait_until(lambda: 2 in applied(running), "a later update in the place of update 2")
        again.ask_to_stop()
        assert again.wait_for_exit() == 0
        with running.connect() as broker:
            wait_until(
                lambda: broker.state(running.topology.updates.name).messages == 0, "all to be taken in"
            )

        final = running.newest()
        with running.connect() as broker:
            history = list(all_versions(broker, running.topology))
        folded = {one.id.sequence for version in history for one in version.folded}
        folder = tmp_path / ".fluffle/spool" / federation / "site-0"
        with open_spool(folder, worker="site-0", max_bytes=1 << 20) as spool:
            kept = spool.residual()
            rounds = spool.next_id.sequence - 1
        assert kept is not None
        assert 1 in folded
        assert 2 not in folded
        assert np.array_equal(final.vector + kept[1].vector, rounds * DELTA)
