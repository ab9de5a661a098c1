"""A private RabbitMQ cluster on one machine: nodes that share a user, a cookie and epmd, loopback only.

Its folder holds one folder for each node, from which that node alone can be loaded, killed or restarted.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Self

from fluffle.errors import BrokerError
from fluffle_cli.guard import stop_port_mapper
from fluffle_cli.node import BrokerNode, store
from fluffle_cli.rabbitmq_server import (
    LOOPBACK,
    NodeSettings,
    NodeTls,
    comes_true,
    cookie_of,
    free_ports,
    new_settings,
    write_private,
)


@dataclass(frozen=True, slots=True)
class BrokerCluster:
    """The nodes of one cluster, running or stopped; `with` stops them at the end."""

    nodes: tuple[BrokerNode, ...]

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        size: int = 3,
        management: bool = True,
        tls: NodeTls | None = None,
        timeout_s: float = 120.0,
    ) -> Self:
        """Start a cluster in `folder` and wait until every node serves: about 12 s.

        A stopped cluster in the folder starts as it was, whatever `management` and `tls` say.

        Raises ConfigError if there is no server on this machine, and BrokerError if the folder holds
        something else than a cluster of this size, or if a node does not come up.
        """
        folder = folder.resolve()
        if (folder / "node.json").exists():
            raise BrokerError(f"{folder} holds a broker of one node: choose another folder for the cluster")
        with ExitStack() as ports:
            if not _node_folder(folder, 1).exists():
                _prepare(folder, size, management=management, tls=tls, ports=ports)
            cluster = cls.load(folder)
            if len(cluster.nodes) != size:
                raise BrokerError(
                    f"the cluster in {folder} has {len(cluster.nodes)} nodes, not {size}: choose another "
                    "folder for the new one"
                )
            try:
                cluster._each(lambda node: None if node.is_running else node.restart(timeout_s=timeout_s))
            except BaseException:  # Ctrl-C too: without this the nodes would stay behind
                cluster.stop()
                raise
        return cluster

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Find the cluster in `folder`, running or not; BrokerError if there is none."""
        first = BrokerNode.load(_node_folder(folder, 1))
        others = range(2, first.settings.cluster_size + 1)
        return cls((first, *(BrokerNode.load(_node_folder(folder, number)) for number in others)))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Tell whether a cluster was ever started in `folder`."""
        return (_node_folder(folder, 1) / "node.json").exists()

    @property
    def amqp_url(self) -> str:
        """The URL for clients, with user and password; they connect to any node that answers."""
        first = self.nodes[0]
        places = ",".join(f"{LOOPBACK}:{node.settings.amqp_port}" for node in self.nodes)
        return first.amqp_url.replace(f"{LOOPBACK}:{first.settings.amqp_port}", places)

    @property
    def management_url(self) -> str | None:
        """The URL of a running node's UI, which shows the whole cluster."""
        return next(
            (node.management_url for node in self.nodes if node.is_running), self.nodes[0].management_url
        )

    @property
    def is_running(self) -> bool:
        """Whether more than half of the nodes are alive: fewer are no quorum, and serve nobody."""
        return 2 * sum(node.is_running for node in self.nodes) > len(self.nodes)

    def stop(self) -> None:
        """Stop the running nodes cleanly; the folder stays."""
        self._each(lambda node: node.stop())
        comes_true(lambda: stop_port_mapper(self.nodes[0].settings.epmd_port), timeout_s=5)

    def outlive(self) -> None:
        """Let the nodes live on when this process ends."""
        for node in self.nodes:
            node.outlive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _each(self, action: Callable[[BrokerNode], None]) -> None:
        # In parallel: no node serves before it has found the others.
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(action, self.nodes))


def _node_folder(folder: Path, number: int) -> Path:
    return folder / f"node-{number}"


def _prepare(folder: Path, size: int, *, management: bool, tls: NodeTls | None, ports: ExitStack) -> None:
    """Create the folders of stopped nodes; their ports are held until `ports` closes."""
    cookie = token_hex(16)
    [epmd] = ports.enter_context(free_ports(1))
    first: NodeSettings | None = None
    for number in range(1, size + 1):
        own = new_settings([*ports.enter_context(free_ports(3)), epmd], management=management, tls=tls)
        first = first or own
        node = _node_folder(folder, number)
        cookie_of(node).parent.mkdir(parents=True, mode=0o700)
        write_private(cookie_of(node), cookie)
        settings = replace(own, user=first.user, password=first.password, number=number, cluster_size=size)
        store(node, settings)
