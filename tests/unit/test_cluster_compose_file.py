"""docker-compose.cluster.yml, read as text like the file that it adds to."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
CLUSTER = (ROOT / "docker-compose.cluster.yml").read_text(encoding="utf-8")
NODES = ["rabbitmq", "rabbitmq-2", "rabbitmq-3"]


def test_every_part_may_connect_to_every_node() -> None:
    users = re.findall(r"amqp://([a-z0-9-]+)@rabbitmq:5672/", BASE)

    assert set(re.findall(r"amqp://([a-z0-9-]+)@([a-z0-9,-]+)/%2F", CLUSTER)) == {
        (user, ",".join(NODES)) for user in users
    }


def test_the_nodes_of_the_cluster_are_its_containers() -> None:
    configured = (ROOT / "broker_config" / "cluster" / "container.conf").read_text(encoding="utf-8")

    assert re.findall(r"= rabbit@(.*)", configured) == NODES
    assert re.findall(r"hostname: (.*)", CLUSTER) == NODES[1:]


def test_only_the_first_node_publishes_its_ui() -> None:
    assert CLUSTER.count("ports: !reset []") == CLUSTER.count("networks: !override { federation:") == 2
