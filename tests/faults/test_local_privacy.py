"""Noise that workers add themselves, with real processes: each counts what it has sent, whoever dies."""

import signal
from pathlib import Path

import pytest
from federation import Federation
from injection import inject_death, moments

from fluffle_cli.node import BrokerNode

UPDATES_OF_EACH = 4
LOCAL = [
    *("--dp", "local", "--dp-epsilon", "8", "--dp-clip", "2", "--dp-max-updates", str(UPDATES_OF_EACH)),
    *("--buffer-size", "1", "--buffer-timeout", "2"),
]
MOMENTS = {
    "before it is published": 'kind == "update" and count == 2 and before',
    "before its confirm": 'kind == "update" and count == 2 and not before',
}


@pytest.mark.parametrize("moment", moments(MOMENTS, "before its confirm"))
def test_a_worker_that_is_killed_with_an_update_under_way_pays_for_it_once(
    node: BrokerNode, tmp_path: Path, federation: str, moment: str
) -> None:
    (tmp_path / "rounds").write_text("1000")
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.gated_sum_task:task") as running:
        leader = running.aggregator("first", *LOCAL, "--strategy", "reuse")
        leader.wait_for("leading")
        inject_death(tmp_path, MOMENTS[moment])
        dying = running.worker(0, "--dp-epsilon", "8", "--dp", "local", sites=2)
        assert dying.wait_for_exit() == -signal.SIGKILL

        workers = [running.worker(site, "--dp-epsilon", "8", sites=2) for site in range(2)]
        assert [worker.wait_for_exit() for worker in workers] == [0, 0]
        assert leader.wait_for_exit() == 0

        for worker in workers:
            [left] = worker.events("leaving")
            assert str(left["because"]).endswith("updates is spent: it has sent them all")
            [promise] = worker.events("differential privacy")
            assert str(promise["promise"]).startswith("Whoever sees all that one worker sends")
        final = running.newest()
        assert final.finished == "all workers have sent the 4 updates that the privacy budget allows"
        assert final.privacy is not None
        assert {each.updates for each in final.privacy.participations.values()} == {UPDATES_OF_EACH}
        # The same bytes again are no new update: the model contains as many as were paid for.
        assert final.updates == 2 * UPDATES_OF_EACH
        refused = [each.sequence for each in running.waiting_in(running.topology.rejected.name)]
        assert refused == ([2] if moment == "before its confirm" else [])


def test_a_worker_that_insists_on_more_leaves_with_a_sentence_and_sends_nothing(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    (tmp_path / "rounds").write_text("1000")
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.gated_sum_task:task") as running:
        leader = running.aggregator("first", *LOCAL)
        leader.wait_for("leading")

        worker = running.worker(0, "--dp-epsilon", "2")

        assert worker.wait_for_exit() == 2
        assert "and 4 updates for" in worker.log.read_text()
        assert running.newest().updates == 0
