"""The head queue deleted, or the whole broker lost: nobody begins anew by mistake, and `restore` mends it."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from brokers import all_versions
from federation import Federation, Part, assert_refused

from fluffle.model_stream import newest_version
from fluffle.record import Rank
from fluffle.record_file import read_record
from fluffle_cli.node import BrokerNode
from fluffle_cli.restoring import TERMS_AHEAD
from harness.sending import commit, send_from_one_base

pytestmark = pytest.mark.long


@pytest.fixture
def running(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Federation]:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as started:
        yield started


def lead(federation: Federation, name: str) -> Part:
    """Start an aggregator, and wait until it leads."""
    leader = federation.aggregator(name, "--buffer-size", "1")
    leader.wait_for("leading")
    return leader


def leave(leader: Part) -> None:
    leader.process.terminate()
    assert leader.wait_for_exit() == 0


def delete(federation: Federation, *queues: str) -> None:
    """Delete queues, as somebody does in RabbitMQ's UI."""
    connection = pika.BlockingConnection(pika.URLParameters(federation.broker_url))
    channel = connection.channel()
    for queue in queues:
        channel.queue_delete(queue)
    connection.close()


def done(federation: Federation, *arguments: str) -> str:
    """Run a command that must end well, and return what it prints."""
    result = federation.fluffle(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused_ids(leader: Part) -> list[tuple[object, object]]:
    return [(line["update"], line["reason"]) for line in leader.events("refused")]


def test_a_deleted_head_is_restored_from_the_stream_and_resent_updates_are_recognised(
    running: Federation,
) -> None:
    first = lead(running, "first")
    commit(running, first, [1, 2, 3])
    leave(first)
    delete(running, running.topology.head.name)
    refused = running.aggregator("refused", "--buffer-size", "1")
    assert_refused(refused, running.topology.head.name, "fluffle model export")

    done(running, "model", "export", "--out", "newest.fluffle")
    restored = done(running, "model", "restore", "newest.fluffle")
    again = lead(running, "again")
    send_from_one_base(running, [2])
    again.wait_for("refused")
    commit(running, again, [4])

    assert "version 3 (term 1)" in restored
    assert refused_ids(again) == [("site-9/r1/2", "duplicate")]
    newest = running.newest()
    assert (newest.rank, newest.updates) == (Rank(2, 4), 4)
    with running.connect() as broker:
        assert [one.version for one in all_versions(broker, running.topology)] == [0, 1, 2, 3, 4]


def test_an_archived_file_brings_a_federation_back_after_the_loss_of_the_broker(running: Federation) -> None:
    first = lead(running, "first")
    commit(running, first, [1, 2])
    done(running, "model", "export", "--out", "backup.fluffle")
    commit(running, first, [3])
    leave(first)
    seen_by_a_worker = running.newest().rank
    delete(running, *(queue.name for queue in running.topology.queues))

    done(running, "model", "restore", "backup.fluffle")
    again = lead(running, "again")
    with running.connect() as broker:
        offered = newest_version(
            broker, running.topology, stop=threading.Event(), newer_than=seen_by_a_worker
        )
    send_from_one_base(running, [1])
    again.wait_for("refused")
    commit(running, again, [3])  # what the lost version contained may come again

    archived = read_record(running.folder / "backup.fluffle").version
    assert seen_by_a_worker == Rank(1, 3)
    assert offered is not None
    assert offered.rank == Rank(1 + TERMS_AHEAD, 2)
    assert offered.vector.tolist() == archived.vector.tolist()
    assert refused_ids(again) == [("site-9/r1/1", "duplicate")]
    newest = running.newest()
    assert (newest.rank, newest.updates) == (Rank(2 + TERMS_AHEAD, 3), 3)


def test_restore_says_in_one_sentence_why_not(running: Federation, tmp_path: Path) -> None:
    leader = lead(running, "leader")
    commit(running, leader, [1])
    done(running, "model", "export", "--version", "0", "--out", "old.fluffle")
    done(running, "model", "export", "--out", "newest.fluffle")
    damaged = tmp_path / "damaged.fluffle"
    damaged.write_bytes((tmp_path / "newest.fluffle").read_bytes()[:-200])

    def sentence(*arguments: str) -> str:
        result = running.fluffle("model", "restore", *arguments)
        assert result.returncode == 2
        [said] = result.stderr.strip().splitlines()
        return said

    assert "Stop every aggregator first" in sentence("newest.fluffle")
    leave(leader)
    assert "holds version 1 (term 1), and the file 1 (term 1)" in sentence("newest.fluffle")
    assert "damaged.fluffle is incomplete" in sentence("damaged.fluffle")
    assert f"--federation {running.name} to restore" in sentence("newest.fluffle", "--federation", "other")
    delete(running, running.topology.head.name)
    assert "holds version 1 (term 1), newer than the file's 0 (term 1)" in sentence("old.fluffle")


def test_aggregators_that_were_there_do_not_begin_anew_on_a_broker_that_has_lost_everything(
    tmp_path: Path,
) -> None:
    with (
        BrokerNode.start(tmp_path / "broker", management=False) as own,
        Federation("lost", own.amqp_url, tmp_path, task="numpy_task:task") as running,
    ):
        first = lead(running, "first")
        second = running.aggregator("second", "--buffer-size", "1")
        second.wait_for("standing by")
        commit(running, first, [1, 2])
        done(running, "model", "export", "--out", "kept.fluffle")

        own.kill()
        shutil.rmtree(own.folder / "data")
        own.restart()

        for aggregator in (first, second):
            assert_refused(aggregator, "'lost' had versions, and now", "fluffle model restore")
        done(running, "model", "restore", "kept.fluffle")
        commit(running, lead(running, "again"), [3])
