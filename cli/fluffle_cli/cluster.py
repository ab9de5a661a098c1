"""A private RabbitMQ cluster on one machine: nodes that share a user, a cookie and epmd, loopback only.

Its folder holds one folder for each node, from which that node alone can be loaded, killed or started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from fluffle.errors import BrokerError
from fluffle_cli.guard import stop_port_mapper
from fluffle_cli.node import BrokerNode, store
from fluffle_cli.node_tls import NodeTls
from fluffle_cli.rabbitmq_server import (
    LOOPBACK,
    NodeSettings,
    comes_true,
    cookie_of,
    find_server,
    free_ports,
    write_private,
)


@dataclass(frozen=True, slots=True)
class BrokerCluster:
    """The nodes of one cluster, running or stopped; `with` stops them at the end."""

    folder: Path
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

        What a stopped cluster has left there is started as it was, whatever `management` and `tls` say.

        Raises ConfigError when there is no server to be found, and BrokerError when what is in the folder is
        something else than a cluster of this size, or when a node does not come up.
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
                    f"the cluster in {folder} has {len(cluster.nodes)} nodes, not {size}: "
                    f"choose another folder for the new one"
                )
            try:
                cluster._each(lambda node: None if node.is_running else node.restart(timeout_s=timeout_s))
            except BaseException:  # Ctrl-C too: nodes that nobody waits for must not stay behind
                cluster.stop()
                raise
        return cluster

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Find the cluster that lives in `folder`, running or not; BrokerError when there is none."""
        folder = folder.resolve()
        first = BrokerNode.load(_node_folder(folder, 1))
        others = range(2, first.settings.cluster_size + 1)
        return cls(folder, (first, *(BrokerNode.load(_node_folder(folder, number)) for number in others)))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Tell whether a cluster was ever started in `folder`."""
        return (_node_folder(folder, 1) / "node.json").exists()

    @property
    def amqp_url(self) -> str:
        """Where clients connect, with user and password: any node that answers."""
        places = ",".join(f"{LOOPBACK}:{node.settings.amqp_port}" for node in self.nodes)
        scheme = "amqp" if self.authority is None else "amqps"
        return f"{scheme}://{self.user}:{self.password}@{places}/%2F"

    @property
    def authority(self) -> Path | None:
        """The certificate by which clients know the nodes; None without TLS."""
        return self.nodes[0].authority

    @property
    def management_url(self) -> str | None:
        """Where one of the running nodes has RabbitMQ's UI, which shows the whole cluster."""
        running = [node.management_url for node in self.nodes if node.is_running]
        return running[0] if running else self.nodes[0].management_url

    @property
    def user(self) -> str:
        """The one user there is: administrator, with every right."""
        return self.nodes[0].user

    @property
    def password(self) -> str:
        """The password for AMQP and for the UI."""
        return self.nodes[0].password

    @property
    def is_running(self) -> bool:
        """Whether more than half of the nodes are alive: fewer are no quorum, and serve nobody."""
        return 2 * sum(node.is_running for node in self.nodes) > len(self.nodes)

    def stop(self) -> None:
        """Stop what runs of it in good order; the folder stays."""
        self._each(lambda node: node.stop())
        comes_true(lambda: stop_port_mapper(self.nodes[0].settings.epmd_port), timeout_s=5)

    def outlive(self) -> None:
        """Let the nodes go on when this process is gone."""
        for node in self.nodes:
            node.outlive()

    def __enter__(self) -> Self:
        """Give the running cluster."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _each(self, action: Callable[[BrokerNode], None]) -> None:
        # At once: none of them serves before it has found the others.
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(action, self.nodes))


def _node_folder(folder: Path, number: int) -> Path:
    return folder / f"node-{number}"


def _prepare(folder: Path, size: int, *, management: bool, tls: NodeTls | None, ports: ExitStack) -> None:
    """Make the nodes' folders, as of nodes that are stopped; their ports are held until `ports` closes."""
    server_folder = str(find_server(os.environ))
    user, password, cookie = f"fluffle-{token_hex(3)}", token_hex(16), token_hex(16)
    [epmd] = ports.enter_context(free_ports(1))
    for number in range(1, size + 1):
        amqp, ui, distribution = ports.enter_context(free_ports(3))
        node = _node_folder(folder, number)
        cookie_of(node).parent.mkdir(parents=True, mode=0o700)
        write_private(cookie_of(node), cookie)
        store(
            node,
            NodeSettings(
                server_folder=server_folder,
                user=user,
                password=password,
                amqp_port=amqp,
                management_port=ui if management else None,
                distribution_port=distribution,
                epmd_port=epmd,
                certificates=None if tls is None else str(tls.certificates.resolve()),
                passwords=tls is None or tls.passwords,
                number=number,
                cluster_size=size,
            ),
        )
