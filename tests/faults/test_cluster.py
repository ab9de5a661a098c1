"""A federation on three nodes: one may die at a time, two may not, and nothing is lost or counted twice."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import history_of, leader_of, queues
from federation import Federation, Part, assert_every_confirmed_update_counts_once, wait_until

from fluffle.errors import NameTaken
from fluffle.rabbit import RabbitBroker, worker_name
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode
from harness.cluster import BrokerCluster

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerCluster]:
    """Three nodes of these tests' own, since they kill them."""
    with BrokerCluster.start(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def start(federation: Federation) -> list[Part]:
    """Start two aggregators, three workers and an evaluator, and wait until they make versions."""
    plan = ["--buffer-size", "3", "--local-steps", "5"]
    parts = [federation.aggregator(name, *plan) for name in ("first", "second")]
    parts += [federation.worker(site, "--delay", "0.2", sites=3) for site in range(3)]
    parts.append(federation.evaluator())
    wait_for_more_versions(parts)
    return parts


def versions_of(parts: list[Part]) -> int:
    """Count the versions that were committed, whoever led; nobody has ended."""
    for part in parts:
        assert part.process.poll() is None, f"{part.name} ended:\n{part.log.read_text()[-3000:]}"
    return sum(len(part.events("version committed")) for part in parts)


def wait_for_more_versions(parts: list[Part]) -> None:
    wanted = versions_of(parts) + 3
    wait_until(lambda: versions_of(parts) >= wanted, "more versions")


def stop(parts: list[Part]) -> None:
    """Ask all to leave in good order."""
    for part in parts:
        part.process.send_signal(signal.SIGTERM)
    assert {part.name: part.wait_for_exit() for part in parts} == {part.name: 0 for part in parts}


def assert_nothing_is_lost_or_counted_twice(federation: Federation, cluster: BrokerCluster) -> None:
    """Hold the ledger, and the history that each node's copy of the stream tells."""
    history = history_of(cluster, federation.topology)
    assert_every_confirmed_update_counts_once(federation, history[-1])

    folded = [one.id for version in history for one in version.folded]
    assert len(folded) == len(set(folded)) == history[-1].updates


def test_every_queue_and_the_stream_have_a_copy_on_each_node(cluster: BrokerCluster) -> None:
    topology = topology_of("copies")

    with RabbitBroker(cluster.amqp_url, name="test", heartbeat_s=5) as broker:
        broker.declare(topology)

    names = {node.name for node in cluster.nodes}
    members = {name: set(queue["members"]) for name, queue in queues(cluster, "members").items()}
    assert members == {queue.name: names for queue in topology.queues}


def test_a_run_goes_on_while_one_node_after_the_other_is_dead(cluster: BrokerCluster, tmp_path: Path) -> None:
    with Federation("one-node-dies", cluster.amqp_url, tmp_path, task="numpy_task:task") as federation:
        parts = start(federation)

        leader = leader_of(cluster, federation.topology.updates.name)
        leader.kill()
        wait_for_more_versions(parts)
        leader.restart()
        wait_for_more_versions(parts)
        other = next(node for node in cluster.nodes if node is not leader)
        other.kill()
        wait_for_more_versions(parts)
        other.restart()
        stop(parts)

        assert_nothing_is_lost_or_counted_twice(federation, cluster)


def test_without_a_majority_of_nodes_everybody_waits_and_then_goes_on(
    cluster: BrokerCluster, tmp_path: Path
) -> None:
    with Federation("two-nodes-die", cluster.amqp_url, tmp_path, task="numpy_task:task") as federation:
        parts = start(federation)

        dead = cluster.nodes[:2]
        for node in dead:
            node.kill()
        for part in parts:
            part.wait_for("waiting for the broker")
        before = versions_of(parts)
        with ThreadPoolExecutor() as pool:
            list(pool.map(BrokerNode.restart, dead))

        wait_for_more_versions(parts)
        assert before
        stop(parts)
        assert_nothing_is_lost_or_counted_twice(federation, cluster)


def test_a_worker_name_on_a_dead_node_keeps_nobody_from_working_and_counts_again_when_the_node_is_back(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_name, "RETRY_AFTER_S", 1.0)
    home, *others = cluster.nodes
    topology = topology_of("names")

    def take(node: BrokerNode) -> RabbitBroker:
        broker = RabbitBroker(node.amqp_url, name="name", heartbeat_s=10)
        broker.declare(topology)
        broker.take_name(topology, "site-1", label=node.name, on_rival=lambda _: None)
        return broker

    take(home)
    home.kill()
    both = [take(node) for node in others]
    assert caplog.text.count("under the same name would not be noticed") >= 2
    home.restart()

    def turned_away() -> list[NameTaken]:
        return [error for broker in both if isinstance(error := broker.failure, NameTaken)]

    wait_until(lambda: len(turned_away()) == 1, "one of the two to be turned away")
    assert "'site-1'" in str(turned_away()[0])
    for broker in both:
        broker.close()
