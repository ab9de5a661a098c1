"""What tests ask of a private cluster: who leads a queue, and who holds a copy of it."""

import json
import threading
from typing import Any

from federation import wait_until
from rabbitmqctl import rabbitmqctl

from fluffle.errors import ConnectionLost, StreamUnreadable
from fluffle.framing import record_digest
from fluffle.model_stream import newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_version
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode
from harness.cluster import BrokerCluster

SOON_S = 10.0


def queues(cluster: BrokerCluster, *columns: str) -> dict[str, dict[str, Any]]:
    """Return what the cluster says of its queues, by their names."""
    running = next(node for node in cluster.nodes if node.is_running)
    found = rabbitmqctl(running, "list_queues", "name", *columns, "--formatter", "json")
    return {str(queue.pop("name")): queue for queue in json.loads(found)}


def leader_of(cluster: BrokerCluster, queue: str) -> BrokerNode:
    """Return the node that leads a queue."""
    name = queues(cluster, "leader")[queue]["leader"]
    return next(node for node in cluster.nodes if node.name == name)


def history_of(cluster: BrokerCluster, topology: Topology) -> list[ModelVersion]:
    """Return the newest version and all that it comes from, in order, once every node tells the same."""
    history: dict[str, ModelVersion] = {}

    def is_the_same_on_all() -> bool:
        try:
            first, *others = (_history_on(node, topology) for node in cluster.nodes)
        except (ConnectionLost, StreamUnreadable):
            return False  # a node's copy of the stream is there some seconds after the node
        history.clear()
        history.update(first)
        return all(list(other) == list(first) for other in others)

    wait_until(is_the_same_on_all, f"one history in every copy of {topology.models.name}")
    return list(history.values())


def _history_on(node: BrokerNode, topology: Topology) -> dict[str, ModelVersion]:
    """Return a history by the versions' digests, as one node's copy of the stream has it."""
    versions: dict[str, ModelVersion] = {}
    with RabbitBroker(node.amqp_url, name="history", heartbeat_s=20) as broker:
        newest = newest_version(broker, topology, stop=threading.Event())
        assert newest is not None
        with broker.read_stream(topology.models.name, offset="first") as reader:
            while newest.rank not in {version.rank for version in versions.values()}:
                body = reader.next_body(SOON_S)
                assert body is not None, f"the stream on {node.name} ends before {newest.rank}"
                digest = record_digest(body)
                versions[digest] = decode_version(body)
    line = []
    while digest:
        line.append((digest, versions[digest]))
        digest = versions[digest].parent
    return dict(reversed(line))
