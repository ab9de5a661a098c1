"""The worker killed, cut off, blocked and refused, with real processes: what it has finished counts once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import (
    Federation,
    Part,
    applied_ids,
    assert_every_confirmed_update_counts_once,
    assert_refused,
    wait_until,
)
from gates import allow
from rabbitmqctl import add_user, rabbitmqctl
from relay import Relay

from fluffle.errors import ConnectionLost
from fluffle.record import ModelVersion
from fluffle.rights import rights_of
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

QUICKLY = ["--buffer-size", "1"]
LEAVING = "unsent updates remain in the spool: start this worker again to send them"
TICK = "application:set_env(rabbit, channel_tick_interval, 1000)."


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own, since they kill it and raise its alarms."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        yield started


@pytest.fixture
def gated(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Federation]:
    """A federation whose workers train when a test lets them."""
    if not node.is_running:  # a test failed between the kill and the restart
        node.restart()
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.gated_task:task") as running:
        allow(running, 0)
        yield running


def wait_until_training(federation: Federation, number: int) -> None:
    """Wait until a worker is in the middle of its nth round."""
    begun = federation.folder / f"begun-{number}"
    wait_until(begun.exists, f"the beginning of round {number}")


def through(relay: Relay, node: BrokerNode) -> list[str]:
    """Return the flags of a worker that reaches the broker through a relay."""
    url = node.amqp_url.replace(f":{node.amqp_port}/", f":{relay.port}/")
    return ["--broker-url", url]


def assert_applied(federation: Federation, sequences: list[int], *, leavers: list[Part]) -> ModelVersion:
    """The federation ends, and has applied these numbers of one run of one worker, each once."""
    # The last round may begin before the version that ends the federation is there.
    allow(federation, 1000)
    codes = [part.wait_for_exit() for part in leavers]
    final = federation.newest()

    assert codes == [0] * len(leavers)
    assert len(final.applied.runs) == 1
    assert sorted(one.sequence for one in applied_ids(final)) == sequences
    assert_every_confirmed_update_counts_once(federation, final)
    return final


def spooled(federation: Federation) -> list[Path]:
    """Return the updates that wait on the worker's disk."""
    return sorted((federation.folder / ".fluffle/spool" / federation.name / "site-0").glob("*.update"))


def refused(federation: Federation) -> set[int]:
    """Return the numbers of the updates that the aggregator refused."""
    return {one.sequence for one in federation.waiting_in(federation.topology.rejected.name)}


def test_a_worker_killed_while_training_loses_that_round_alone(gated: Federation) -> None:
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "2")
    worker = gated.worker(0)
    allow(gated, 1)
    wait_until_training(gated, 2)
    worker.wait_for("update published")

    worker.kill()
    reborn = gated.worker(0)

    assert_applied(gated, [1, 2], leavers=[leader, reborn])


def test_a_worker_killed_when_the_broker_has_its_update_and_before_it_knows_sends_it_again(
    gated: Federation, node: BrokerNode
) -> None:
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "2")
    with Relay(node.amqp_port) as relay:
        worker = gated.worker(0, *through(relay, node))
        wait_until_training(gated, 1)
        relay.hold_answers()
        allow(gated, 1)
        leader.wait_for("version committed")

        worker.kill()
    assert len(spooled(gated)) == 1
    reborn = gated.worker(0)

    assert_applied(gated, [1, 2], leavers=[leader, reborn])
    assert 1 in refused(gated)


def test_a_worker_cut_off_in_the_middle_of_a_message_and_killed_sends_it_from_its_spool(
    gated: Federation, node: BrokerNode
) -> None:
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "2")
    with Relay(node.amqp_port) as relay:
        worker = gated.worker(0, *through(relay, node))
        wait_until_training(gated, 1)
        relay.cut_after(1000)
        allow(gated, 1)
        worker.wait_for("lost the broker; connecting again")

        worker.kill()
    reborn = gated.worker(0)

    assert_applied(gated, [1, 2], leavers=[leader, reborn])
    assert 1 not in refused(gated)


def test_a_damaged_update_is_set_aside_and_the_worker_goes_on(gated: Federation, node: BrokerNode) -> None:
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "1")
    with Relay(node.amqp_port) as relay:
        worker = gated.worker(0, *through(relay, node))
        wait_until_training(gated, 1)
        relay.cut()
        allow(gated, 1)
        worker.wait_for("lost the broker; connecting again")
        worker.ask_to_stop()
        assert worker.wait_for_exit() == 0
    assert worker.events(LEAVING)
    [path] = spooled(gated)
    os.truncate(path, path.stat().st_size - 1)

    reborn = gated.worker(0)

    assert_applied(gated, [2], leavers=[leader, reborn])
    assert path.with_suffix(".damaged").exists()


def test_a_worker_trains_on_through_an_outage_until_enough_is_under_way(
    gated: Federation, node: BrokerNode
) -> None:
    # A lone worker may have one more update under way than a version takes.
    leader = gated.aggregator("leader", "--buffer-size", "4", "--max-updates", "8")
    worker = gated.worker(0, "--train-offline")
    allow(gated, 1)
    wait_until_training(gated, 2)

    node.kill()
    allow(gated, 4)
    wait_until_training(gated, 5)
    assert len(spooled(gated)) == 3
    allow(gated, 5)
    enough = "enough updates are in flight: waiting for the broker"
    worker.wait_for(enough)
    assert [line["in_flight"] for line in worker.events(enough)] == [5]
    node.restart()

    assert_applied(gated, list(range(1, 9)), leavers=[leader, worker])
    assert worker.events("training without the broker")


def test_a_full_updates_queue_is_waited_for_and_nothing_is_lost(gated: Federation, node: BrokerNode) -> None:
    leader = gated.aggregator("leader", *QUICKLY)
    worker = gated.worker(0)
    wait_until_training(gated, 1)
    leader.kill()
    rule = ["set_policy", "full", f"^{gated.topology.updates.name}$", '{"max-length": 2}']
    rabbitmqctl(node, *rule, "--apply-to", "queues")
    allow(gated, 50)
    worker.wait_for("the updates queue is full; waiting")

    worker.ask_to_stop()
    assert worker.wait_for_exit() == 0
    assert worker.events(LEAVING)
    waiting = len(worker.events("round trained"))
    reborn = gated.worker(0)
    reborn.wait_for("the updates queue is full; waiting")
    successor = gated.aggregator("successor", *QUICKLY, "--max-updates", str(waiting + 3))

    assert_applied(gated, list(range(1, waiting + 4)), leavers=[successor, reborn])


def test_a_worker_that_is_stopped_while_a_memory_alarm_blocks_its_publish_loses_nothing(
    gated: Federation, node: BrokerNode
) -> None:
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "2")
    worker = gated.worker(0)
    wait_until_training(gated, 1)
    rabbitmqctl(node, "set_vm_memory_high_watermark", "0")
    try:
        allow(gated, 1)
        worker.wait_for("round trained")
        wait_until(lambda: len(spooled(gated)) == 1, "the update in the spool")
        worker.ask_to_stop()
        assert worker.wait_for_exit() == 0
        assert worker.events("update published") == []
        assert worker.events(LEAVING)
        reborn = gated.worker(0)
        reborn.wait_for("the spool has unsent updates of an earlier run")
    finally:
        rabbitmqctl(node, "set_vm_memory_high_watermark", "0.4")

    assert_applied(gated, [1, 2], leavers=[leader, reborn])


def test_a_round_longer_than_heartbeat_and_consumer_timeout_costs_no_connection(
    gated: Federation, node: BrokerNode
) -> None:
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "1")
    # It holds its first message while it builds version 0, which may take longer on a busy machine.
    leader.wait_for("leading")
    # Channels look at these when they are opened; the tick is a minute otherwise.
    rabbitmqctl(node, "eval", f"application:set_env(rabbit, consumer_timeout, 5000), {TICK}")
    try:
        worker = gated.worker(0, "--heartbeat-s", "1")
        wait_until_training(gated, 1)

        with gated.connect() as holder:
            holder.consume(gated.topology.head.name, prefetch=1)
            assert holder.next_delivery(60)
            with pytest.raises(ConnectionLost):
                holder.next_delivery(120)
        allow(gated, 1)
    finally:
        rabbitmqctl(node, "eval", "application:set_env(rabbit, consumer_timeout, 1800000).")

    assert_applied(gated, [1], leavers=[leader, worker])
    assert worker.events("lost the broker; connecting again") == []


def test_a_worker_that_may_publish_no_more_says_why_and_leaves_its_update_in_the_spool(
    gated: Federation, node: BrokerNode
) -> None:
    # A channel remembers rights until its tick.
    rabbitmqctl(node, "eval", TICK)
    rights = rights_of("worker", gated.name, "site-0").patterns
    url = add_user(node, "site-0", **rights)
    impatient = "--broker-url", url, "--login-patience", "2"
    leader = gated.aggregator("leader", *QUICKLY, "--max-updates", "2")
    try:
        worker = gated.worker(0, *impatient)
        wait_until_training(gated, 1)
        rabbitmqctl(node, "set_permissions", "site-0", rights["configure"], "^$", rights["read"])
        allow(gated, 1)

        assert_refused(worker, gated.topology.updates_in.name)
        assert worker.events(LEAVING)
        assert len(spooled(gated)) == 1

        rabbitmqctl(
            node, "set_permissions", "site-0", *(rights[one] for one in ("configure", "write", "read"))
        )
        reborn = gated.worker(0, *impatient)
        assert_applied(gated, [1, 2], leavers=[leader, reborn])
    finally:
        rabbitmqctl(node, "delete_user", "site-0")
