"""Noise in shares under masks, with real helpers and real training: nobody sees a sum with less noise."""

from pathlib import Path

import numpy_task
import pytest
from federation import Federation
from secured import as_flags

from fluffle_cli.demo.keys import HELPERS, Keys
from fluffle_cli.node import BrokerNode

SITES, UPDATES = 4, 5
PROMISE = ("--dp", "distributed", "--dp-epsilon", "200", "--dp-clip", "2", "--dp-max-updates", str(UPDATES))


@pytest.mark.long
def test_sites_add_their_shares_leave_when_they_have_sent_all_and_learn_something(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        keys = Keys(running.folder / "keys")
        keys.make(running.name, [f"site-{site}" for site in range(SITES)])
        helpers = [running.start(name, "fluffle_helper", *as_flags(keys.of_helper(name))) for name in HELPERS]
        secure = ("--secure-aggregation", "--buffer-size", str(SITES), *as_flags(keys.public))
        leader = running.aggregator("leader", *secure, *PROMISE, "--buffer-timeout", "3")
        workers = [
            running.worker(site, *as_flags(keys.of(f"site-{site}")), sites=SITES) for site in range(SITES)
        ]

        assert [part.wait_for_exit() for part in (leader, *workers, *helpers)] == [0] * 8

        final = running.newest()
        assert final.finished == f"all workers have sent the {UPDATES} updates that the privacy budget allows"
        assert final.rejected == 0
        for worker in workers:
            [left] = worker.events("leaving")
            assert str(left["because"]).endswith("budget of 5 updates is spent: it has sent them all")
        [promise] = leader.events("differential privacy")
        assert str(promise["promise"]).startswith("As long as 3 workers of each sum are honest")
        shown = running.fluffle("privacy", "status").stdout
        assert "epsilon 200 of 200 spent" in shown
        assert all(f"site-{site}" in shown for site in range(SITES))
        exported = tmp_path / "final.safetensors"
        assert running.fluffle("model", "export", "--out", str(exported)).returncode == 0
        noise = b"distributed, Skellam noise in shares, of which 3 are counted on, clip 2"
        assert noise in exported.read_bytes()
        assert numpy_task.task.evaluate(final.weights)["accuracy"] > 0.5
