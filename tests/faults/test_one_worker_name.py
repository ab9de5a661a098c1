"""Two processes under one worker's name: from two machines, so that the lock of a shared spool is no help."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from federation import HEARTBEAT_S, Federation, Part, assert_refused, end_and_balance, wait_until
from relay import Relay

from fluffle.broker import Listener
from fluffle.events import TurnedAway
from fluffle.topology import topology_of
from fluffle.wire import decode_report
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "numpy_task:task"
TURNED_AWAY = "another process wanted this worker's name and was refused"
WAITING = "waiting for the broker"
# RabbitMQ takes a connection for dead after three heartbeats; a wait between attempts is 10 s at most.
FREE_WITHIN_S = 3 * HEARTBEAT_S + 20


def started(federation: Federation) -> Part:
    leader = federation.aggregator("leader", "--buffer-size", "1")
    leader.wait_for("leading")
    return leader


def a_worker(federation: Federation, machine: str, *flags: str) -> Part:
    """Start the worker site-0 as on a machine of its own, with a spool of its own."""
    return federation.worker(0, "--delay", "0.2", "--spool", str(federation.folder / machine), *flags)


def turned_away(part: Part) -> str:
    """What a worker has said about those who wanted its name."""
    lines = [line for line in part.log.read_text().splitlines() if TURNED_AWAY in line]
    return "\n".join(lines)


def told_of(listener: Listener) -> str:
    """What is heard next of those who wanted a name."""
    delivery = listener.next_delivery(0.0)
    report = decode_report(delivery.body) if delivery else None
    happened = [each.event for each in report.events] if report else []
    return "".join(event.other for event in happened if isinstance(event, TurnedAway))


def assert_goes_on(part: Part) -> None:
    part.wait_for("update published", len(part.events("update published")) + 3)


def test_the_first_one_goes_on_and_the_second_ends_and_each_names_the_other(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = started(running)
        first = a_worker(running, "north")
        first.wait_for("update published", 2)
        exchange = topology_of(federation).events.name

        with running.connect() as broker, broker.listen(exchange, name="test") as listener:
            second = a_worker(running, "south")

            assert_refused(second, "'site-0'", f"process {first.process.pid} on ", ", since 20", "--name")
            assert not second.events("round trained")
            wait_until(
                lambda: f"process {second.process.pid} on " in turned_away(first), "the first one to be told"
            )
            wait_until(
                lambda: f"process {second.process.pid} on " in told_of(listener), "pages to be told, too"
            )
        assert_goes_on(first)
        end_and_balance(running, workers=[first], aggregators=[leader])


def test_a_copied_container_does_not_send_under_the_originals_run(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    """Its spool would give the same ids to other updates, of which half would be refused as duplicates."""
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = started(running)
        original = a_worker(running, "original")
        original.wait_for("update published", 3)
        shutil.copytree(tmp_path / "original", tmp_path / "copy")

        copy = a_worker(running, "copy")

        assert_refused(copy, f"process {original.process.pid} on ")
        assert_goes_on(original)
        version = end_and_balance(running, workers=[original], aggregators=[leader])
        assert version.rejected == 0


def test_after_a_kill_the_name_is_free_at_once(node: BrokerNode, tmp_path: Path, federation: str) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = started(running)
        first = a_worker(running, "north")
        first.wait_for("update published", 2)

        first.kill()
        second = a_worker(running, "south")

        second.wait_for("update published", 2)
        assert not second.events(WAITING)
        end_and_balance(running, workers=[second], aggregators=[leader])


def test_a_frozen_process_loses_the_name_and_ends_when_it_wakes_up(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = started(running)
        # On a busy machine the second one takes its time to start.
        first = a_worker(running, "north", "--heartbeat-s", "10")
        first.wait_for("update published", 2)

        os.kill(first.process.pid, signal.SIGSTOP)
        second = a_worker(running, "south")
        second.wait_for("update published", 2)
        os.kill(first.process.pid, signal.SIGCONT)

        assert any("does not answer" in str(line["because"]) for line in second.events(WAITING))
        assert_refused(first, f"process {second.process.pid} on ")
        assert_goes_on(second)
        end_and_balance(running, workers=[second], aggregators=[leader])


def test_a_workers_own_lost_connection_does_not_lock_it_out_for_longer_than_the_heartbeats_take(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    """A relay closes the worker's side alone, so that RabbitMQ keeps the name for the old connection."""
    with Relay(node.amqp_port) as relay:
        url = node.amqp_url.replace(f":{node.amqp_port}/", f":{relay.port}/")
        with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
            leader = started(running)
            running.broker_url = url
            worker = a_worker(running, "north")
            worker.wait_for("update published", 2)

            relay.cut_clients()
            worker.wait_for(WAITING)
            published = len(worker.events("update published"))
            wait_until(
                lambda: len(worker.events("update published")) > published,
                "the worker to go on",
                deadline_s=FREE_WITHIN_S,
            )

            because = [str(line["because"]) for line in worker.events(WAITING)]
            assert because[0].startswith("the last connection of this process holds the worker name 'site-0'")
            running.broker_url = node.amqp_url
            end_and_balance(running, workers=[worker], aggregators=[leader])


def test_evaluators_and_aggregators_may_share_a_name(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    """RabbitMQ tells aggregators apart by their consumers, and of evaluations the newest version's counts."""
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = started(running)
        standby = running.start("standby", "fluffle_aggregator", "--name", "leader", "--buffer-size", "1")
        standby.wait_for("standing by")
        evaluators = [
            running.start(f"evaluator-{number}", "fluffle_cli", "evaluator", "--name", "evaluator")
            for number in range(2)
        ]
        for evaluator in evaluators:
            evaluator.wait_for("evaluated")

        leader.kill()
        a_worker(running, "north").wait_for("update published", 2)

        standby.wait_for("version committed", 2)
        for evaluator in evaluators:
            evaluator.wait_for("evaluated", 2)
