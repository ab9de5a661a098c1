"""A slow worker beside fast ones, with real processes: its rounds are aborted, and everything counts once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import (
    Federation,
    Part,
    applied_ids,
    assert_every_confirmed_update_counts_once,
    wait_until,
)
from gates import allow

from fluffle.update import UpdateId
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

ABORTED = "round aborted: its update would be refused as too stale"
FLAGS = ["--strategy", "fedbuff", "--buffer-size", "1", "--staleness", "constant", "--max-staleness", "3"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        yield started


@pytest.fixture
def gated(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Federation]:
    """A federation of the numpy task; a worker with the gated one trains when a test lets it."""
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        allow(running, 0)
        yield running


def slow_worker(federation: Federation) -> Part:
    return federation.worker(0, "--task", "tasks.gated_task:task")


def sequences(ids: set[UpdateId], worker: str) -> list[int]:
    return sorted(one.sequence for one in ids if one.worker == worker)


def test_a_slow_worker_begins_anew_from_the_newest_version_and_sends_nothing_of_the_old_round(
    gated: Federation,
) -> None:
    leader = gated.aggregator("leader", *FLAGS, "--max-updates", "400")
    slow = slow_worker(gated)
    wait_until((gated.folder / "begun-1").exists, "the slow worker's first round")
    fast = gated.worker(1)

    slow.wait_for(ABORTED)
    wait_until((gated.folder / "begun-2").exists, "the round that it begins instead")
    sent_before = slow.events("update published")
    allow(gated, 1000)
    codes = [part.wait_for_exit() for part in (leader, slow, fast)]
    final = gated.newest()

    assert codes == [0, 0, 0]
    assert sent_before == []
    assert int(str(slow.events(ABORTED)[0]["staleness"])) > 3
    applied = applied_ids(final)
    assert_every_confirmed_update_counts_once(gated, final)
    # An aborted round has used no number, so that there is no gap.
    confirmed = sequences(gated.confirmed(), "site-0")
    assert confirmed == [*range(1, len(confirmed) + 1)]
    assert sequences(applied, "site-1")[0] == 1


def test_a_leader_killed_while_a_stale_round_is_aborted_loses_nothing_and_counts_nothing_twice(
    gated: Federation,
) -> None:
    first = gated.aggregator("first", *FLAGS, "--max-updates", "600")
    second = gated.aggregator("second", *FLAGS, "--max-updates", "600")
    slow = slow_worker(gated)
    wait_until((gated.folder / "begun-1").exists, "the slow worker's first round")
    fast = [gated.worker(site) for site in (1, 2)]
    slow.wait_for(ABORTED)
    leading = first if first.events("leading") else second
    standby = second if leading is first else first

    leading.kill()
    standby.wait_for("leading")
    # The federation goes on: the round that began meanwhile is aborted in its turn.
    slow.wait_for(ABORTED, 2)
    allow(gated, 1000)
    codes = [part.wait_for_exit() for part in (standby, slow, *fast)]
    final = gated.newest()

    assert codes == [0, 0, 0, 0]
    assert final.updates >= 600
    assert len(final.terms) == 2
    assert_every_confirmed_update_counts_once(gated, final)
    confirmed = sequences(gated.confirmed(), "site-0")
    assert confirmed == [*range(1, len(confirmed) + 1)]
