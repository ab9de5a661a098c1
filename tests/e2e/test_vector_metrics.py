"""A metric that is a vector becomes one number for each class, and each may be a target."""

from pathlib import Path

import pytest
from federation import Federation

from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long


def test_the_metric_of_one_class_is_a_target_that_ends_the_federation(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.by_class_task:task") as running:
        goal = ("--target", "f1-score@2/0>=3", "--target-hold", "1")
        leader = running.aggregator("leader", *goal, "--strategy", "fedbuff", "--buffer-size", "1")
        parts = [leader, running.worker(0, "--delay", "0.2"), running.evaluator()]
        codes = [part.wait_for_exit() for part in parts]
        final = running.newest()

    assert codes == [0, 0, 0]
    assert final.finished == "f1-score@2/0>=3 held for an evaluation"
    assert final.best is not None
    assert final.best.metrics["f1-score@2/0"] >= 3
    assert final.best.metrics["f1-score@2/1"] == 0
