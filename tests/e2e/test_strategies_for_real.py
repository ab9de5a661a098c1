"""Each strategy from end to end, on a real broker, with processes of its own and real data."""

from pathlib import Path

import pytest
from brokers import all_versions
from federation import Federation, assert_every_confirmed_update_counts_once

from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "fedasync", "--commit-every", "3", "--commit-after", "1"],
        ["--strategy", "fedbuff", "--buffer-size", "2", "--codec", "bfloat16",
         "--server-optimizer", "momentum", "--server-learning-rate", "0.5"],
        ["--strategy", "fedavg", "--buffer-size", "2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_strategy_reaches_the_target_and_then_everybody_leaves(
    node: BrokerNode, tmp_path: Path, federation: str, flags: list[str]
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        leader = running.aggregator("leader", "--target", "0.88", "--target-hold", "2", *flags)
        standby = running.aggregator("standby", "--target", "0.88", "--target-hold", "2", *flags)
        workers = [running.worker(site, "--delay", str(0.05 + 0.1 * site), sites=2) for site in range(2)]
        evaluator = running.evaluator()

        codes = [part.wait_for_exit() for part in [leader, standby, *workers, evaluator]]

        assert codes == [0, 0, 0, 0, 0]
        with running.connect() as broker:
            history = list(all_versions(broker, running.topology))
        final = history[-1]
        assert final.finished == "accuracy>=0.88 held for 2 evaluations"
        assert final.best is not None
        assert final.best.metrics["accuracy"] >= 0.88
        versions = [version.version for version in history]
        assert versions == sorted(set(versions))
        assert [version.folded for version in history[1:-1] if not version.folded] == []
        assert_every_confirmed_update_counts_once(running, final)
        if "fedavg" in flags:
            assert {one.staleness for version in history for one in version.folded} == {0}
