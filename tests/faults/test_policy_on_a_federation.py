"""An operator's policy acts on the queues of a federation: it is named, and nothing is lost in silence."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation, Part, applied_ids, assert_refused, wait_until
from policies import a_channel, count, policy

from fluffle.topology import HEAD_LENGTH
from fluffle.update import UpdateId
from fluffle_cli.node import BrokerNode
from harness.sending import WORKER, commit, send_from_one_base

pytestmark = pytest.mark.long

TTL_MS = 5000
LOST, PUT_BACK = "the head has lost messages", "put the newest version back into the head"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node with the management interface."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def running(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Federation]:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as started:
        yield started


def start(federation: Federation, name: str, *flags: str) -> Part:
    return federation.aggregator(name, "--buffer-size", "1", *flags)


def lead(federation: Federation, name: str, *flags: str) -> Part:
    leader = start(federation, name, *flags)
    leader.wait_for("leading")
    return leader


def asking(node: BrokerNode) -> tuple[str, str]:
    return "--management-url", str(node.management_url)


def numbers(*sequences: int) -> set[UpdateId]:
    return {UpdateId(WORKER, "r1", sequence) for sequence in sequences}


def test_an_aggregator_does_not_start_under_a_policy_that_would_lose_messages(
    node: BrokerNode, running: Federation
) -> None:
    pattern = rf"^{running.name}\."
    with policy(node, pattern, {"message-ttl": TTL_MS}, name="short-lived"):
        refused = start(running, "refused", *asking(node))

        assert_refused(
            refused,
            "policy 'short-lived'",
            f"message-ttl {TTL_MS}",
            running.topology.updates.name,
            "rabbitmqctl clear_policy -p / short-lived",
        )
        # It made nothing that would have to be deleted.
        assert count(node, running.topology.head.name) is None
    lead(running, "leader", *asking(node))


def test_a_limit_that_is_too_small_for_the_model_is_refused_when_its_size_is_known(
    node: BrokerNode, running: Federation
) -> None:
    with policy(node, rf"^{running.name}\.head$", {"max-length-bytes": 2000}, name="small"):
        refused = start(running, "refused", *asking(node))

        assert_refused(refused, "policy 'small'", "max-length-bytes 2000", "no room for two versions")


@pytest.mark.parametrize("may_ask", [True, False])
def test_what_a_policy_takes_from_the_head_of_a_running_federation_is_said_and_put_back(
    node: BrokerNode, running: Federation, may_ask: bool
) -> None:
    leader = lead(running, "leader", *(asking(node) if may_ask else ()))
    commit(running, leader, [1])
    with policy(node, rf"^{running.name}\.", {"message-ttl": TTL_MS}, name="short-lived"):
        # What was there before the policy does not expire: until it has been pushed out.
        last = 1 + HEAD_LENGTH
        commit(running, leader, range(2, last + 1))

        leader.wait_for(LOST)
        leader.wait_for(PUT_BACK)
        if may_ask:
            leader.wait_for("a policy loses messages")
    # What was published under the policy expires after its end, too.
    commit(running, leader, [last + 1])
    leader.kill()
    successor = lead(running, "successor")
    commit(running, successor, [last + 2])

    [lost, *_] = leader.events(LOST)
    assert "message-ttl" in str(lost["because"])
    assert running.topology.head.name in str(lost["because"])
    named = [str(line["because"]) for line in leader.events("a policy loses messages")]
    assert all("'short-lived'" in one for one in named)
    assert {running.topology.head.name, running.topology.updates.name} <= {
        word for one in named for word in one.split()
    } or not may_ask
    assert bool(leader.events("RabbitMQ's policies cannot be checked")) != may_ask
    newest = running.newest()
    assert (newest.version, applied_ids(newest)) == (last + 2, numbers(*range(1, last + 3)))


def test_a_purged_head_is_restored_and_the_next_leader_continues_from_it(
    node: BrokerNode, running: Federation
) -> None:
    leader = lead(running, "leader", "--server-optimizer", "adam")
    commit(running, leader, [1, 2])
    with a_channel(node) as channel:
        channel.queue_purge(running.topology.head.name)

    leader.wait_for(PUT_BACK)
    leader.kill()
    successor = lead(running, "successor", "--server-optimizer", "adam")
    commit(running, successor, [3])

    assert len(leader.events(LOST)) == 1
    assert not successor.events("the strategy begins anew: its moments are gone")
    newest = running.newest()
    assert (newest.version, applied_ids(newest)) == (3, numbers(1, 2, 3))


def test_a_takeover_under_a_message_ttl_goes_back_to_no_older_version(
    node: BrokerNode, running: Federation
) -> None:
    leader = lead(running, "leader")
    commit(running, leader, [1])
    with policy(node, rf"^{running.name}\.", {"message-ttl": 1}):
        # It stands behind version 1, which has no time to live, and expires when a leader looks at that.
        commit(running, leader, [2])
        leader.kill()

        successor = lead(running, "successor")
        successor.wait_for("the head lacks the newest version and gets it from the stream")
    commit(running, successor, [3])

    newest = running.newest()
    assert (newest.version, applied_ids(newest)) == (3, numbers(1, 2, 3))


def test_updates_that_expire_wait_among_the_refused_and_can_be_sent_again(
    node: BrokerNode, running: Federation
) -> None:
    leader = lead(running, "leader")
    leader.ask_to_stop()
    assert leader.wait_for_exit() == 0
    topology = running.topology
    with policy(node, rf"^{topology.updates.name}$", {"message-ttl": 500}, name="on-updates"):
        send_from_one_base(running, [1, 2, 3, 4])
        wait_until(lambda: count(node, topology.rejected.name) == 4, "four updates among the refused")
        # Nothing is lost, so this is no reason not to start; but it is said.
        leader = lead(running, "again", *asking(node))
        leader.wait_for("a policy weakens a promise")

    listed = running.fluffle("rejected", "list", "--json")
    requeued = running.fluffle("rejected", "requeue", "all", "--yes")
    leader.wait_for("version committed", 4)

    messages = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [one["reason"] for one in messages] == ["expired"] * 4
    assert {one["worker"] for one in messages} == {WORKER}
    assert "message-ttl" in messages[0]["detail"]
    assert requeued.returncode == 0, requeued.stderr
    assert applied_ids(running.newest()) == numbers(1, 2, 3, 4)
    assert count(node, topology.rejected.name) == 0


def test_updates_that_are_lost_are_missed_by_whoever_may_not_look_at_policies(
    node: BrokerNode, running: Federation
) -> None:
    leader = lead(running, "leader")
    commit(running, leader, [1])
    leader.ask_to_stop()
    assert leader.wait_for_exit() == 0
    topology = running.topology
    with policy(node, rf"^{running.name}\.(updates|rejected)$", {"message-ttl": TTL_MS}):
        send_from_one_base(running, [2, 3, 4, 5])
        wait_until(lambda: count(node, topology.updates.name) == 0, "the updates to expire")
        wait_until(lambda: count(node, topology.rejected.name) == 0, "the refused to expire")

        successor = lead(running, "successor")
        commit(running, successor, [6])

    [said] = successor.events("earlier updates of this worker never came")
    assert (said["update"], said["missing"]) == (f"{WORKER}/r1/6", "2-5")
    assert "policy" in str(said["because"])


def test_status_warns_of_a_policy_and_tells_programs_what_it_does(
    node: BrokerNode, running: Federation
) -> None:
    lead(running, "leader")
    with policy(node, rf"^{running.name}\.", {"expires": 3_600_000}, name="unused"):
        told = running.fluffle("status", "--json", *asking(node))
        not_asked = running.fluffle("status", "--json")

    faults = json.loads(told.stdout)["policy_faults"]
    topology = running.topology
    quorum_queues = (topology.updates, topology.head, topology.rejected)
    assert {fault["queue"] for fault in faults} == {queue.name for queue in quorum_queues}
    assert {(fault["policy"], fault["key"], fault["value"]) for fault in faults} == {
        ("unused", "expires", 3_600_000)
    }
    assert told.stderr.count("a policy loses messages") == 3
    assert json.loads(not_asked.stdout)["policy_faults"] is None
    assert "RabbitMQ's policies cannot be checked" in not_asked.stderr
