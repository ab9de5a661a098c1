"""A private RabbitMQ cluster of three nodes on one machine: they share user, cookie and port mapper."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Self

from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import COOKIE, EXTRA_CONFIGURATION, LOOPBACK, free_ports
from harness.federation import ROOT

SIZE = 3
# The first node that starts looks for the others without success, on 3.10 for 5 s unless told otherwise, and
# they wait for it meanwhile. On one machine a second is enough.
CONFIGURATION = "\n".join(
    [
        (ROOT / "broker_config" / "cluster" / "cluster.conf").read_text(),
        "cluster_formation.discovery_retry_limit = 2",
        "cluster_formation.discovery_retry_interval = 500",
        *(
            f"cluster_formation.classic_config.nodes.{each} = fluffle-{each}@localhost"
            for each in range(1, SIZE + 1)
        ),
        "",
    ]
)


@dataclass(frozen=True, slots=True)
class BrokerCluster:
    """The nodes of one cluster, each of which can be killed and restarted; `with` stops them all."""

    nodes: tuple[BrokerNode, ...]

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start a cluster in an empty folder, and wait until every node serves: about 12 s."""
        cookie, password = token_hex(16), token_hex(16)
        nodes = []
        with ExitStack() as ports:
            [epmd_port] = ports.enter_context(free_ports(1))
            for number in range(1, SIZE + 1):
                amqp_port, *_ = ports.enter_context(free_ports(3))
                node = BrokerNode(
                    folder=folder / f"node-{number}",
                    user="fluffle",
                    password=password,
                    amqp_port=amqp_port,
                    epmd_port=epmd_port,
                    has_management=False,
                    name=f"fluffle-{number}@localhost",
                )
                (node.folder / COOKIE).parent.mkdir(parents=True)
                (node.folder / COOKIE).touch(mode=0o600)
                (node.folder / COOKIE).write_text(cookie)
                (node.folder / EXTRA_CONFIGURATION).mkdir()
                (node.folder / EXTRA_CONFIGURATION / "cluster.conf").write_text(CONFIGURATION)
                nodes.append(node)
            cluster = cls(tuple(nodes))
            try:
                cluster._each(BrokerNode.restart)
            except BaseException:  # Ctrl-C too: without this the nodes would stay behind
                cluster._each(BrokerNode.stop)
                raise
        return cluster

    @property
    def amqp_url(self) -> str:
        """The URL for clients, with user and password; they connect to any node that answers."""
        first = self.nodes[0]
        places = ",".join(f"{LOOPBACK}:{node.amqp_port}" for node in self.nodes)
        return first.amqp_url.replace(f"{LOOPBACK}:{first.amqp_port}", places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._each(BrokerNode.stop)

    def _each(self, action: Callable[[BrokerNode], None]) -> None:
        # In parallel: no node serves before it has found the others.
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(action, self.nodes))
