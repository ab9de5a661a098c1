"""A private RabbitMQ node: its own folder, free ports, loopback only, and nothing left behind when it stops.

A node ends with the process that started it, however that one ended, unless `outlive` has let it go.

The folder is the node: it holds data, logs, configuration, cookie and `node.json`, from which any process
can load, stop or restart it. Whether it runs is told by a lock that the server holds as long as it lives,
never by a process number alone: a stale number would let us signal somebody else's process.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from fluffle.errors import BrokerError, ConfigError
from fluffle_cli.guard import Watched, guard, stop_port_mapper
from fluffle_cli.node_tls import NodeTls
from fluffle_cli.rabbitmq_server import (
    LOOPBACK,
    NodeSettings,
    comes_true,
    complaints,
    find_server,
    free_ports,
    is_free,
    is_locked,
    lock_file_of,
    locked,
    serves_amqp,
    spawn,
    write_configuration,
    write_private,
)


@dataclass(slots=True)
class BrokerNode:
    """One private RabbitMQ node, running or stopped; `with` stops it at the end."""

    folder: Path
    settings: NodeSettings
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        home_bin: Path | None = None,
        management: bool = True,
        tls: NodeTls | None = None,
        timeout_s: float = 60.0,
    ) -> Self:
        """Start a node in `folder` and wait until it serves: about 7 s.

        What a stopped node has left there is kept: data, user, password, and its ports if still free.
        `home_bin` is the folder of `rabbitmq-server`; None looks for it. Without `management` there is no UI
        and no HTTP interface: for tests that want a quicker start. With `tls` it speaks nothing in plain
        text but the UI.

        Raises ConfigError when there is no server to be found, and BrokerError, with the last lines of the
        log, when a node runs there already or does not come up.
        """
        folder = folder.resolve()
        server_folder = home_bin or find_server(os.environ)
        make_private_folder(folder)
        with free_ports(4) as (amqp, ui, distribution, epmd):
            fresh = NodeSettings(
                server_folder=str(server_folder),
                user=f"fluffle-{token_hex(3)}",
                password=token_hex(16),
                amqp_port=amqp,
                management_port=ui if management else None,
                distribution_port=distribution,
                epmd_port=epmd,
                certificates=None if tls is None else str(tls.certificates.resolve()),
                passwords=tls is None or tls.passwords,
            )
            node = cls(folder, fresh)
            node._launch(fresh, timeout_s)
        return node

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Find the node that lives in `folder`, running or not; BrokerError when none was ever started."""
        folder = folder.resolve()
        settings = _stored(folder)
        if settings is None:
            raise BrokerError(f"no broker was ever started in {folder}: `fluffle broker up` starts one")
        return cls(folder, settings)

    @property
    def amqp_url(self) -> str:
        """Where clients connect, with user and password."""
        scheme = "amqp" if self.settings.tls is None else "amqps"
        return f"{scheme}://{self.user}:{self.password}@{LOOPBACK}:{self.settings.amqp_port}/%2F"

    @property
    def authority(self) -> Path | None:
        """The file that clients have to trust (`broker_ca_file`); None for a node that speaks no TLS."""
        return None if self.settings.tls is None else self.settings.tls.authority

    @property
    def management_url(self) -> str | None:
        """Where RabbitMQ's UI and HTTP interface are (same user and password); None without the plugin."""
        port = self.settings.management_port
        return None if port is None else f"http://{LOOPBACK}:{port}/"

    @property
    def user(self) -> str:
        """The one user there is: administrator, with every right."""
        return self.settings.user

    @property
    def password(self) -> str:
        """The password for AMQP and for the UI."""
        return self.settings.password

    @property
    def pid(self) -> int:
        """The number of the server's process (beam); it means something only while `is_running`."""
        return self.settings.pid

    @property
    def is_running(self) -> bool:
        """Whether the server is alive, whoever started it."""
        return (self._process is not None and self._process.poll() is None) or is_locked(self.folder)

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop in good order, by SIGKILL after `timeout_s`; the folder stays. A stopped node is left alone.

        It takes 1 s; 3.10 with management takes 6, because it waits for itself after its data are safe.
        """
        if self.is_running:
            self._send(signal.SIGTERM, os.kill)
            comes_true(lambda: not self.is_running, timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the server and its helpers by SIGKILL, as a crash would; the folder stays."""
        if self.is_running:
            self._send(signal.SIGKILL, os.killpg)
            if not comes_true(lambda: not self.is_running, timeout_s=10):
                raise BrokerError(f"the broker in {self.folder} (process {self.pid}) survived SIGKILL")
        self.outlive()
        self._process = None
        self._refresh()
        if self.pid:
            if not self.settings.number:  # the nodes of a cluster share theirs
                comes_true(lambda: stop_port_mapper(self.settings.epmd_port), timeout_s=5)
            self.settings = replace(self.settings, pid=0)
            if self.folder.exists():
                store(self.folder, self.settings)

    def restart(self, *, timeout_s: float = 60.0) -> None:
        """Start again, after a stop if need be: same data, same ports, same user."""
        self.stop()
        taken = [port for port in self.settings.ports if not is_free(port)]
        if taken:
            raise BrokerError(
                f"port {taken[0]} of the broker in {self.folder} was taken by another program meanwhile"
            )
        self._launch(self.settings, timeout_s)

    def outlive(self) -> None:
        """Let the node go on when this process is gone, if it is this process that started it."""
        if self._process is not None:
            guard().release(self._process.pid)

    def __enter__(self) -> Self:
        """Give the running node."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _launch(self, wanted: NodeSettings, timeout_s: float) -> None:
        with locked(self.folder) as lock:
            settings = _as_before(_stored(self.folder), wanted)
            write_configuration(self.folder, settings)
            store(self.folder, settings)
            self._process = spawn(self.folder, settings, lock=lock)
            self.settings = replace(settings, pid=self._process.pid)
            guard().watch(
                Watched(
                    self._process.pid, lock_file=str(lock_file_of(self.folder)), epmd_port=settings.epmd_port
                )
            )
            store(self.folder, self.settings)
        try:
            self._await_service(timeout_s)
        except BaseException:  # Ctrl-C too: a node that nobody waits for must not stay behind
            self.kill()
            raise

    def _await_service(self, timeout_s: float) -> None:
        port, tls = self.settings.amqp_port, self.settings.tls
        serves = comes_true(lambda: serves_amqp(port, tls) or not self.is_running, timeout_s)
        if serves and self.is_running:
            return
        what = f"did not come up within {timeout_s:.0f} s" if self.is_running else "ended while it started"
        raise BrokerError(
            f"RabbitMQ in {self.folder} {what}. From the files in its folder log:\n{complaints(self.folder)}"
        )

    def _send(self, what: signal.Signals, by: Callable[[int, int], None]) -> None:
        # The lock of a node that another process starts is held a moment before the process number is there.
        if not comes_true(lambda: self._refresh() > 0, timeout_s=2):
            raise BrokerError(f"the broker in {self.folder} is being started by another process: try again")
        with suppress(ProcessLookupError):
            by(self.pid, what)

    def _refresh(self) -> int:
        """Learn what another process did with the node, unless its folder is gone; return its number."""
        self.settings = _stored(self.folder) or self.settings
        return self.pid


def make_private_folder(folder: Path) -> None:
    """Make the folder of a node, for its owner alone; ConfigError when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"the broker's folder {folder} cannot be made: {error.strerror}") from error


def _as_before(left: NodeSettings | None, wanted: NodeSettings) -> NodeSettings:
    """Keep what an earlier node left in the folder, as far as it still goes with what is wanted."""
    if left is None:
        return wanted
    same_user = replace(wanted, user=left.user, password=left.password)
    if not all(map(is_free, left.ports)):
        return same_user
    return replace(
        same_user,
        amqp_port=left.amqp_port,
        management_port=wanted.management_port and (left.management_port or wanted.management_port),
        distribution_port=left.distribution_port,
        epmd_port=left.epmd_port,
    )


def store(folder: Path, settings: NodeSettings) -> None:
    """Write what `BrokerNode.load` reads."""
    write_private(folder / "node.json", json.dumps(asdict(settings), indent=2) + "\n")


def _stored(folder: Path) -> NodeSettings | None:
    path = folder / "node.json"
    try:
        return NodeSettings(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise BrokerError(f"{path} is damaged ({error}): delete {folder} and start again") from error
