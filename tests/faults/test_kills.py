"""Each part killed with SIGKILL in the middle of a real run: the run goes on, every update counts once.

One run trains with TensorFlow; the others, which hold the same promise, with a task that starts sooner.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import all_versions
from federation import Federation, Part, assert_every_confirmed_update_counts_once

from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

QUICK_TASK = "numpy_task:task"
GOAL = ["--target", "0.85", "--target-hold", "2", "--buffer-size", "3"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own, since one of them kills it."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        yield started


def start_training(federation: Federation) -> tuple[Part, Part, list[Part]]:
    """Start two aggregators, an evaluator and three workers, and wait until two versions are made."""
    leader = federation.aggregator("first", *GOAL)
    leader.wait_for("leading")
    standby = federation.aggregator("second", *GOAL)
    workers = [federation.worker(site, "--delay", "0.3", sites=3) for site in range(3)]
    federation.evaluator()
    standby.wait_for("standing by")
    leader.wait_for("version committed", 2)
    return leader, standby, workers


def assert_target_was_reached(federation: Federation, survivors: list[Part]) -> None:
    codes = {part.name: part.wait_for_exit() for part in survivors}
    final = federation.newest()

    assert codes == dict.fromkeys(codes, 0)
    assert final.finished.startswith("accuracy>=0.85 held")
    assert_every_confirmed_update_counts_once(federation, final)


def test_a_killed_aggregator_is_replaced_and_no_update_is_lost_or_doubled(
    node: BrokerNode, tmp_path: Path
) -> None:
    with Federation("aggregator-killed", node.amqp_url, tmp_path) as federation:
        leader, standby, workers = start_training(federation)

        leader.kill()

        standby.wait_for("leading")
        assert_target_was_reached(federation, [standby, *workers])
        with federation.connect() as broker:
            history = list(all_versions(broker, federation.topology))
        assert {version.term for version in history} == {1, 2}
        folded = [one.id for version in history for one in version.folded]
        assert len(folded) == len(set(folded)) == history[-1].updates


def test_a_killed_worker_comes_back_and_goes_on_with_its_run_and_nothing_counts_twice(
    node: BrokerNode, tmp_path: Path
) -> None:
    with Federation("worker-killed", node.amqp_url, tmp_path, task=QUICK_TASK) as federation:
        leader, standby, workers = start_training(federation)

        workers[0].wait_for("update published")
        workers[0].kill()
        reborn = federation.worker(0, "--delay", "0.3", sites=3)

        assert_target_was_reached(federation, [leader, standby, reborn, *workers[1:]])
        runs = [run for worker, run in federation.newest().applied.runs if worker == "site-0"]
        assert len(runs) == 1


def test_a_killed_broker_comes_back_with_every_confirmed_update(node: BrokerNode, tmp_path: Path) -> None:
    with Federation("broker-killed", node.amqp_url, tmp_path, task=QUICK_TASK) as federation:
        leader, standby, workers = start_training(federation)

        node.kill()
        for worker in workers:
            worker.wait_for("lost the broker; connecting again")
        node.restart()

        assert_target_was_reached(federation, [leader, standby, *workers])
