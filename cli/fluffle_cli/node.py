"""A private RabbitMQ node: its own folder, free ports, loopback only, and nothing left behind when it stops.

A node ends with the process that started it, even if that process is killed, unless `outlive` was called.

The folder is the node: it holds data, logs, configuration, cookie and `node.json`, from which any process
can load, stop or restart it. A lock that the server holds while it lives tells whether it runs: a process
number alone may be outdated, and a signal would then hit somebody else's process.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from fluffle.errors import BrokerError, ConfigError
from fluffle_cli.guard import Watched, guard, stop_port_mapper
from fluffle_cli.rabbitmq_server import (
    LOOPBACK,
    NodeSettings,
    NodeTls,
    comes_true,
    complaints,
    free_ports,
    is_free,
    is_locked,
    lock_file_of,
    locked,
    new_settings,
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
        cls, folder: Path, *, management: bool = True, tls: NodeTls | None = None, timeout_s: float = 60.0
    ) -> Self:
        """Start a node in `folder` and wait until it serves: about 7 s.

        What a stopped node left there is kept: data, user, password, and its ports if they are still free.
        Without `management` there is no UI and no HTTP interface: for tests that need a quicker start. With
        `tls` only the UI is without encryption.

        Raises ConfigError if there is no server on this machine, and BrokerError, with the first errors of
        its log, if a node runs in the folder already or the new one does not come up.
        """
        folder = folder.resolve()
        with free_ports(4) as ports:
            node = cls(folder, new_settings(ports, management=management, tls=tls))
            make_private_folder(folder)
            node._launch(node.settings, timeout_s)
        return node

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Find the node in `folder`, running or not; BrokerError if none was ever started there."""
        folder = folder.resolve()
        settings = _stored(folder)
        if settings is None:
            raise BrokerError(f"no broker was ever started in {folder}: `fluffle broker up` starts one")
        return cls(folder, settings)

    @property
    def nodes(self) -> tuple[Self, ...]:
        """The node itself, as if it were a cluster of one."""
        return (self,)

    @property
    def amqp_url(self) -> str:
        """The URL for clients, with user and password."""
        scheme = "amqp" if self.settings.tls is None else "amqps"
        return f"{scheme}://{self.user}:{self.password}@{LOOPBACK}:{self.settings.amqp_port}/%2F"

    @property
    def authority(self) -> Path | None:
        """The file that clients must trust (`broker_ca_file`); None without TLS."""
        return None if self.settings.tls is None else self.settings.tls.authority

    @property
    def management_url(self) -> str | None:
        """The URL of RabbitMQ's UI and HTTP interface (same user and password); None without the plugin."""
        port = self.settings.management_port
        return None if port is None else f"http://{LOOPBACK}:{port}/"

    @property
    def user(self) -> str:
        """The only user: an administrator with every right."""
        return self.settings.user

    @property
    def password(self) -> str:
        """The password for AMQP and for the UI."""
        return self.settings.password

    @property
    def pid(self) -> int:
        """The number of the server's process (beam); valid only while `is_running`."""
        return self.settings.pid

    @property
    def is_running(self) -> bool:
        """Whether the server is alive, whoever started it."""
        return (self._process is not None and self._process.poll() is None) or is_locked(self.folder)

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop the server cleanly, by SIGKILL after `timeout_s`; the folder stays.

        It takes 1 s; 3.10 with management takes 6 s, because it waits for itself after its data are safe.
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
        """Stop it if it runs, and start it again: same data, same ports, same user."""
        self.stop()
        taken = [port for port in self.settings.ports if not is_free(port)]
        if taken:
            raise BrokerError(
                f"port {taken[0]} of the broker in {self.folder} was taken by another program: stop that "
                "program, and try again"
            )
        self._launch(self.settings, timeout_s)

    def outlive(self) -> None:
        """Let the node live on when this process ends, if this process started it."""
        if self._process is not None:
            guard().release(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, wanted: NodeSettings, timeout_s: float) -> None:
        with locked(self.folder) as lock:
            settings = _merged(_stored(self.folder), wanted)
            write_configuration(self.folder, settings)
            store(self.folder, settings)
            self._process = spawn(self.folder, settings, lock=lock)
            pid = self._process.pid
            self.settings = replace(settings, pid=pid)
            guard().watch(Watched(pid, str(lock_file_of(self.folder)), settings.epmd_port))
            store(self.folder, self.settings)
        try:
            self._wait_for_amqp(timeout_s)
        except BaseException:  # Ctrl-C too: without this the node would stay behind
            self.kill()
            raise

    def _wait_for_amqp(self, timeout_s: float) -> None:
        port, tls = self.settings.amqp_port, self.settings.tls
        serves = comes_true(lambda: serves_amqp(port, tls) or not self.is_running, timeout_s)
        if serves and self.is_running:
            return
        what = f"did not come up within {timeout_s:.0f} s" if self.is_running else "ended while it started"
        raise BrokerError(
            f"RabbitMQ in {self.folder} {what}. From the files in its folder log:\n{complaints(self.folder)}"
        )

    def _send(self, what: signal.Signals, by: Callable[[int, int], None]) -> None:
        # While another process starts the node, the lock is taken a moment before the pid is stored.
        if not comes_true(lambda: self._refresh() > 0, timeout_s=2):
            raise BrokerError(f"the broker in {self.folder} is being started by another process: try again")
        with suppress(ProcessLookupError):
            by(self.pid, what)

    def _refresh(self) -> int:
        """Read again what another process may have stored, unless the folder is gone; return the pid."""
        self.settings = _stored(self.folder) or self.settings
        return self.pid


def make_private_folder(folder: Path) -> None:
    """Create a node's folder, which only its owner may read; ConfigError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot create the broker's folder {folder}: {error.strerror}") from error


def store(folder: Path, settings: NodeSettings) -> None:
    """Write the file that `BrokerNode.load` reads."""
    write_private(folder / "node.json", json.dumps(asdict(settings), indent=2) + "\n")


def _merged(left: NodeSettings | None, wanted: NodeSettings) -> NodeSettings:
    """Keep the user that an earlier node left in the folder, and its ports if all of them are free."""
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


def _stored(folder: Path) -> NodeSettings | None:
    path = folder / "node.json"
    try:
        return NodeSettings(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise BrokerError(f"{path} is damaged ({error}): delete {folder} and start again") from error
