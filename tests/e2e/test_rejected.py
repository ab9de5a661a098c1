"""`fluffle rejected` as an operator types it, on a real broker with a real aggregator."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import SOON_S
from federation import Federation, wait_until
from rabbitmqctl import add_user

from fluffle.rabbit import RabbitBroker
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from harness.sending import WORKER, an_update_for, commit, send, send_from_one_base

pytestmark = pytest.mark.long


@pytest.fixture
def running(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Federation]:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as started:
        yield started


def count(broker: RabbitBroker, queue: str) -> int:
    return broker.state(queue).messages


def refuse(federation: Federation) -> None:
    """Let an aggregator refuse three updates as too stale, and one message that nobody can read."""
    strict = federation.aggregator("strict", "--buffer-size", "1", "--max-staleness", "0")
    strict.wait_for("leading")
    base = federation.newest()
    commit(federation, strict, [1])
    late = [encode_update(an_update_for(base, sequence)) for sequence in (2, 3, 4)]
    send(federation, [*late, b"no message"])
    strict.wait_for("refused", 4)
    strict.process.terminate()
    assert strict.wait_for_exit() == 0


def fill(federation: Federation, many: int) -> set[bytes]:
    """Put messages into F.rejected as an aggregator does."""
    bodies = [b"%06d" % number * 2000 for number in range(many)]
    headers = {"reason": "too-stale", "worker": WORKER, "user": WORKER}
    with federation.connect() as broker:
        broker.declare(federation.topology)
        for body in bodies:
            broker.publish(federation.topology.rejected_in.name, "", body, headers)
    return set(bodies)


def take_all(federation: Federation, queue: str) -> list[bytes]:
    """Take all that waits in a queue, once nobody else consumes it."""
    with federation.connect() as broker:
        wait_until(lambda: broker.state(queue).consumers == 0, "the end of the command", deadline_s=SOON_S)
        waiting = count(broker, queue)
        broker.consume(queue, prefetch=60_000)
        deliveries = [broker.next_delivery(SOON_S) for _ in range(waiting)]
    return [delivery.body for delivery in deliveries if delivery]


def test_refused_updates_are_listed_shown_sent_again_and_removed(
    running: Federation,
) -> None:
    refuse(running)

    listed = running.fluffle("rejected", "list")
    late = running.fluffle("rejected", "list", "--json", "--reason", "too-stale", "--worker", WORKER)
    shown = running.fluffle("rejected", "show", f"{WORKER}/r1/3")
    requeued = running.fluffle("rejected", "requeue", "all", "--reason", "too-stale", "--yes")

    assert listed.returncode == 0, listed.stderr
    assert "4 messages, " in listed.stdout
    assert f"3 too-stale, 1 unreadable; from {WORKER} 4" in listed.stdout
    assert "\x1b" not in listed.stdout
    found = [json.loads(line) for line in late.stdout.splitlines()]
    assert [(one["number"], one["id"]) for one in found] == [(n, f"{WORKER}/r1/{n + 1}") for n in (1, 2, 3)]
    assert found[0]["user"] == WORKER
    assert found[0]["through"] == running.topology.updates_in.name
    assert found[0]["at"] > 1_700_000_000
    assert "the update started from version 0" in shown.stdout
    assert "L2 norm" in shown.stdout
    assert "3 of 3 sent again" in requeued.stdout, requeued.stderr

    lenient = running.aggregator("lenient", "--buffer-size", "1")
    lenient.wait_for("version committed", 3)
    assert running.newest().updates == 4
    assert lenient.events("refused") == []

    discarded = running.fluffle("rejected", "discard", "1", "--yes")
    left = running.fluffle("rejected", "list")
    assert "1 of 1 removed" in discarded.stdout, discarded.stderr
    assert left.stdout.strip() == "no such message is in the queue"


def test_a_duplicate_that_is_sent_again_comes_back_and_counts_once(running: Federation) -> None:
    leader = running.aggregator("leader", "--buffer-size", "1")
    leader.wait_for("leading")
    commit(running, leader, [1])
    send_from_one_base(running, [1])
    leader.wait_for("refused")

    requeued = running.fluffle("rejected", "requeue", f"{WORKER}/r1/1", "--yes")

    assert requeued.returncode == 0, requeued.stderr
    leader.wait_for("refused", 2)
    assert {line["reason"] for line in leader.events("refused")} == {"duplicate"}
    assert running.newest().updates == 1


def test_without_the_tag_impersonator_nothing_is_sent_and_nothing_lost(
    node: BrokerNode, running: Federation
) -> None:
    bodies = fill(running, 3)
    url = add_user(node, "no-impersonator", configure=".*", write=".*", read=".*")

    refused = running.fluffle("rejected", "requeue", "all", "--yes", broker_url=url)

    assert refused.returncode == 2
    assert f"message 1 cannot be sent again as its sender '{WORKER}'" in refused.stderr
    assert "tag impersonator" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert set(take_all(running, running.topology.rejected.name)) == bodies
    assert take_all(running, running.topology.updates.name) == []


def test_without_a_terminal_and_without_yes_nothing_changes(running: Federation) -> None:
    bodies = fill(running, 3)

    for deed in ("requeue", "discard"):
        asked = running.fluffle("rejected", deed, "all")
        assert asked.returncode == 2
        assert "give --yes" in asked.stderr

    assert set(take_all(running, running.topology.rejected.name)) == bodies


def test_an_error_names_a_number_that_does_not_exist(running: Federation) -> None:
    fill(running, 1)

    shown = running.fluffle("rejected", "show", "1-2,7")

    assert shown.returncode == 2
    assert shown.stderr.strip().endswith("no message is 7: see `fluffle rejected list`")


@pytest.mark.parametrize("deed", ["requeue", "discard"])
def test_a_command_that_is_killed_at_work_loses_nothing(running: Federation, deed: str) -> None:
    bodies = fill(running, 500)
    updates, rejected = running.topology.updates.name, running.topology.rejected.name
    command = [sys.executable, "-m", "fluffle_cli.main", "rejected", deed, "1-250", "--yes"]
    environment = {"FLUFFLE_FEDERATION": running.name, "FLUFFLE_BROKER_URL": running.broker_url}

    with running.connect() as broker, subprocess.Popen(command, env=os.environ | environment) as process:
        wait_until(lambda: count(broker, rejected) < 500 or process.poll() is not None, "a command at work")
        wait_until(
            lambda: count(broker, updates) >= 20 or deed == "discard" or process.poll() is not None,
            "20 of them to be sent",
        )
        process.kill()

    sent, left = take_all(running, updates), take_all(running, rejected)
    assert len(sent) == len(set(sent))
    assert len(left) == len(set(left)) >= 250
    if deed == "requeue":
        assert {*sent, *left} == bodies
        assert (
            len({*sent} & {*left}) <= 1
        )  # the one that was confirmed in one queue, and not acked in the other
    assert bodies - set(left) <= {b"%06d" % number * 2000 for number in range(250)}


def test_messages_that_rabbitmq_dead_letters_are_listed_with_its_reason(running: Federation) -> None:
    topology = running.topology
    with running.connect() as broker:
        broker.declare(topology)
    send(running, [b"kills whoever reads it"])
    with running.connect() as watch:

        def dies_and_is_the_last() -> bool:
            with running.connect() as victim:
                victim.consume(topology.updates.name, prefetch=1)
                victim.next_delivery(0.2)
            return count(watch, topology.rejected.name) == 1

        wait_until(dies_and_is_the_last, "RabbitMQ to have had enough")

    [found] = running.fluffle("rejected", "list", "--json").stdout.splitlines()

    message = json.loads(found)
    assert (message["reason"], message["worker"]) == ("delivery-limit", WORKER)
    assert message["through"] == topology.updates_in.name
    assert message["at"] > 1_700_000_000
