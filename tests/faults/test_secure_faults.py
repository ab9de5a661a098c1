"""Secure aggregation with real helpers on a real broker: killed, frozen, or without their disk.

Updates come from the test, so that what the model must be is known to the last bit: the integer sum without
masks.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation
from injection import inject, inject_death, moments
from secured import SENDERS, Secured

from fluffle.wire import encode_update
from fluffle_cli.demo.keys import HELPERS
from fluffle_cli.node import BrokerNode


@pytest.fixture
def secured(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Secured]:
    with Federation(federation, node.amqp_url, tmp_path) as running:
        yield Secured(running)


# A sum goes before each of the two versions; the first version is version 0's, the first ack the hello's.
MOMENTS = {
    "before the sum": 'kind == "sum" and count == 2 and before',
    "between the sum and the question": 'kind == "sum" and count == 2 and not before',
    "after the question": 'kind == "close" and count == 2 and not before',
    "before the commit": 'kind == "version" and count == 3 and before',
    "after the commit and before the acks": 'kind == "version" and count == 3 and not before',
}


@pytest.mark.parametrize(
    "moment", moments(MOMENTS, "between the sum and the question", "after the commit and before the acks")
)
def test_wherever_the_leader_is_killed_the_next_one_opens_the_same_sum_to_the_last_bit(
    secured: Secured, tmp_path: Path, moment: str
) -> None:
    helpers = [secured.helper(name) for name in HELPERS]
    inject_death(tmp_path, MOMENTS[moment])
    first = secured.aggregator("first")
    first.wait_for("leading")
    secured.send(range(len(SENDERS)))
    assert first.wait_for_exit() == -signal.SIGKILL

    assert secured.aggregator("second").wait_for_exit() == 0

    secured.assert_all_in(secured.federation.newest())
    # They learn of the end too.
    assert [each.wait_for_exit() for each in helpers] == [0, 0, 0]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_one_helper_of_three_may_be_killed_or_frozen_and_nobody_waits_for_it_twice(
    secured: Secured, how: str
) -> None:
    gone, *_ = [secured.helper(name) for name in HELPERS]
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    if how == "killed":
        gone.kill()
    else:
        gone.process.send_signal(signal.SIGSTOP)
    secured.send(range(3, 6))

    assert aggregator.wait_for_exit() == 0
    secured.assert_all_in(secured.federation.newest())
    if how == "frozen":
        gone.process.send_signal(signal.SIGCONT)


def test_without_two_helpers_the_federation_waits_says_so_and_goes_on_when_one_is_back(
    secured: Secured,
) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    for name in HELPERS[:2]:
        parts[name].kill()
    secured.send(range(3, 6))
    aggregator.wait_for("the sum waits for helpers")
    [said] = aggregator.events("the sum waits for helpers")
    assert "helper-1 or helper-2" in str(said["missing"])

    back = secured.helper(HELPERS[1])

    assert aggregator.wait_for_exit() == 0
    back.wait_for("opened a sum")
    secured.assert_all_in(secured.federation.newest())


LIES = """
import sys
if any("helper-1.key" in word for word in sys.orig_argv):
    from fluffle.secure import helping
    right = helping.sums_of_masks
    helping.sums_of_masks = lambda size, keys: right(size, [(key, factor + 1) for key, factor in keys])
"""


def test_a_helper_that_answers_with_wrong_masks_is_named_and_the_two_others_go_on(
    secured: Secured, tmp_path: Path
) -> None:
    inject(tmp_path, LIES)
    for name in HELPERS:
        secured.helper(name)
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(len(SENDERS)))

    assert aggregator.wait_for_exit() == 0
    secured.assert_all_in(secured.federation.newest())
    line = "helpers have answered with wrong masks: look at their machines, or replace them"
    assert [said["helpers"] for said in aggregator.events(line)] == [["helper-1"]]


def test_a_helper_without_its_ledger_opens_nothing_and_the_two_others_go_on(secured: Secured) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    parts[HELPERS[0]].kill()
    (secured.keys.folder / "epoch-1" / f"{HELPERS[0]}.ledger").unlink()

    lost = secured.helper(HELPERS[0])

    assert lost.wait_for_exit() == 2
    assert "is lost: without it a helper cannot know" in lost.log.read_text()
    secured.send(range(3, 6))
    assert aggregator.wait_for_exit() == 0
    secured.assert_all_in(secured.federation.newest())


def test_a_helper_that_is_killed_remembers_what_it_has_opened(secured: Secured) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first", updates=12)
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    for part in parts.values():
        part.kill()
    again = [secured.helper(name) for name in HELPERS]
    secured.send(range(3, 6))
    secured.send(range(6, 12), base_version=0)

    assert aggregator.wait_for_exit() == 0
    final = secured.federation.newest()
    assert final.updates == 12
    assert final.last_sum
    assert final.last_sum.number == 4
    for part in again:
        assert not part.events("refused to open a sum")


def test_keys_are_rotated_while_the_federation_runs_and_late_updates_are_refused(secured: Secured) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first", updates=9)
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    late = secured.update(3)
    keys = secured.keys.folder
    said = secured.federation.fluffle("keys", "rotate", "--folder", str(keys))
    assert said.returncode == 0, said.stderr
    # Each helper's new files are moved over the old ones.
    for name in HELPERS:
        for kind in ("key", "ledger"):
            shutil.move(keys / "epoch-2" / f"{name}.{kind}", keys / "epoch-1" / f"{name}.{kind}")
    aggregator.wait_for("leading", 2)
    for part in parts.values():
        part.wait_for("using the keys of an epoch", 2)
    newest = secured.federation.newest()
    assert newest.plan.secure
    assert newest.plan.secure.epoch == 2
    with secured.federation.connect() as broker:
        exchange = secured.federation.topology.updates_in.name
        broker.publish_as(late.id.worker, exchange, "", encode_update(late), {"kind": "update"})
    secured.send(range(4, 10), base_version=newest.version, base_term=newest.term)

    assert aggregator.wait_for_exit() == 0
    [refused] = aggregator.events("refused")[:1]
    assert refused["reason"] == "other-epoch"
    final = secured.federation.newest()
    assert final.updates == 9
    assert final.last_sum
    assert (final.last_sum.epoch, final.last_sum.number) == (2, 2)


def test_two_processes_of_one_helper_are_not_at_work_at_once(secured: Secured, tmp_path: Path) -> None:
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    first = secured.helper(HELPERS[0])
    first.wait_for("using the keys of an epoch")
    beside = secured.helper(HELPERS[0])
    assert beside.wait_for_exit() == 2
    assert "is this helper running already?" in beside.log.read_text()
    # On another machine, with a copy of all files.
    shutil.copytree(secured.keys.folder / "epoch-1", tmp_path / "elsewhere")
    copy = secured.helper(HELPERS[0], key=tmp_path / "elsewhere" / f"{HELPERS[0]}.key")

    assert copy.wait_for_exit() == 2
    assert "another process" in copy.log.read_text()
