"""A private RabbitMQ node: its own folder, free ports, loopback only, and nothing left behind when it stops.

A node ends with the process that started it, even if that process is killed, unless `outlive` was called.

The folder is the node: it holds data, logs, configuration, cookie and `node.json`, from which any process
can load, stop or restart it. A lock that the server holds while it lives tells whether it runs: a process
number alone may be outdated, and a signal would then hit somebody else's process.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Self

from pydantic import PrivateAttr

from fluffle import guard
from fluffle.errors import BrokerError, ConfigError
from fluffle_cli.rabbitmq_server import (
    LOOPBACK,
    NodeSettings,
    comes_true,
    find_server,
    first_errors,
    free_ports,
    is_free,
    spawn,
    write_configuration,
    write_private,
)

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 10.0
# RabbitMQ's scripts redirect descriptors of one digit, and shells keep their own from 10 on.
_LOWEST_LOCK_DESCRIPTOR = 100


class BrokerNode(NodeSettings):
    """One private RabbitMQ node, running or stopped; `with` stops it at the end."""

    _process: subprocess.Popen[bytes] | None = PrivateAttr(None)
    _give_up_at: float = PrivateAttr(0.0)

    @classmethod
    def start(cls, folder: Path, *, management: bool = True, certificates: Path | None = None) -> Self:
        """Start a node in `folder` and wait until it serves: about 7 s.

        What a stopped node left there is kept: data, user, password, and its ports if they are still free.
        Without `management` there is no UI and no HTTP interface: for tests that need a quicker start.
        `certificates` is a folder of `fluffle broker certs`: then AMQP uses TLS, but not the UI.

        Raises ConfigError if there is no server on this machine, and BrokerError, with the first errors of
        its log, if a node runs in the folder already or the new one does not come up.
        """
        with free_ports(4) as ports:
            node = cls._launched(folder, ports, management=management, certificates=certificates)
            node._wait_until_it_serves()
        return node

    @classmethod
    def begin_start(cls, folder: Path) -> Self:
        """Start a node like `start`, and return before it serves; `serves` tells when it does."""
        with free_ports(4) as ports:
            return cls._launched(folder, ports, management=True, certificates=None)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Find the node in `folder`, running or not; BrokerError if none was ever started there."""
        path = folder.resolve() / "node.json"
        try:
            return cls(folder=path.parent, **json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise BrokerError(
                f"no broker was ever started in {folder}: `fluffle broker up` starts one"
            ) from error
        except (TypeError, ValueError) as error:
            raise BrokerError(f"{path} is not of this Fluffle: delete {folder} and start again") from error

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Tell whether a node was ever started in `folder`."""
        return (folder / "node.json").exists()

    @property
    def amqp_url(self) -> str:
        """The URL for clients, with user and password."""
        scheme = "amqps" if self.certificates else "amqp"
        return f"{scheme}://{self.user}:{self.password}@{LOOPBACK}:{self.amqp_port}/%2F"

    @property
    def authority(self) -> Path | None:
        """The file that clients must trust (`broker_ca_file`); None without TLS."""
        return self.certificates and self.certificates / "ca.pem"

    @property
    def management_url(self) -> str | None:
        """The URL of RabbitMQ's UI and HTTP interface (same user and password); None without the plugin."""
        return f"http://{LOOPBACK}:{self.ports[1]}/" if self.has_management else None

    @property
    def is_running(self) -> bool:
        """Whether the server is alive, whoever started it."""
        if self._process is not None and self._process.poll() is None:
            return True
        with suppress(FileNotFoundError), open(self.folder / "node.lock") as file:
            return not _lock(file, fcntl.LOCK_SH)
        return False

    def serves(self) -> bool:
        """Tell whether clients can connect; BrokerError, with its log's errors, if they never will."""
        what = "ended while it started"
        if self.is_running:
            # RabbitMQ opens the port for AMQP last, after queues and plugins.
            with suppress(OSError), socket.create_connection((LOOPBACK, self.amqp_port), timeout=5):
                return True
            if time.monotonic() < self._give_up_at:
                return False
            what = f"did not come up within {START_TIMEOUT_S:.0f} s"
        quoted = first_errors(self.folder)
        raise BrokerError(f"RabbitMQ in {self.folder} {what}. From the files in its folder log:\n{quoted}")

    def stop(self) -> None:
        """Stop the server cleanly, or by SIGKILL if it does not end; the folder stays.

        It takes 1 s; 3.10 with management takes 6 s, because it waits for itself after its data are safe.
        """
        self._signal(os.kill, signal.SIGTERM, STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the server and its helpers by SIGKILL, as a crash would; the folder stays."""
        self._signal(os.killpg, signal.SIGKILL, KILL_TIMEOUT_S)
        if self.is_running:
            raise BrokerError(f"the broker in {self.folder} (process {self.pid}) survived SIGKILL")
        self.outlive()
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self.pid:
            guard.stop_port_mapper(self.epmd_port)
            self.pid = 0
            if self.folder.exists():
                self.store()

    def restart(self) -> None:
        """Stop it if it runs, and start it again: same data, same ports, same user."""
        self.stop()
        if taken := [port for port in self.ports if not is_free(port)]:
            raise BrokerError(
                f"port {taken[0]} of the broker in {self.folder} was taken by another program: stop that "
                "program, and try again"
            )
        self._launch()
        self._wait_until_it_serves()

    def outlive(self) -> None:
        """Let the node live on when this process ends, if this process started it."""
        if self._process is not None:
            guard.release(self._process.pid)

    def store(self) -> None:
        """Write the file that `load` reads."""
        write_private(self.folder / "node.json", self.model_dump_json(indent=2))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @classmethod
    def _launched(
        cls, folder: Path, ports: list[int], *, management: bool, certificates: Path | None
    ) -> Self:
        find_server(os.environ)  # before anything is written
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"cannot create the broker's folder {folder}: {error.strerror}") from error
        user, password = f"fluffle-{token_hex(3)}", token_hex(16)
        if cls.is_in(folder):
            left = cls.load(folder)
            user, password = left.user, left.password
            if all(map(is_free, [*left.ports, left.epmd_port])):
                ports = [left.amqp_port, left.epmd_port]
        node = cls(
            folder=folder.resolve(),
            user=user,
            password=password,
            amqp_port=ports[0],
            epmd_port=ports[-1],
            has_management=management,
            certificates=certificates and certificates.resolve(),
        )
        node._launch()
        return node

    def _launch(self) -> None:
        path = self.folder / "node.lock"
        path.touch(mode=0o600)
        with (
            open(path) as low,
            open(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _LOWEST_LOCK_DESCRIPTOR)) as lock,
        ):
            # `is_running` in another process holds the lock for a moment: so try for a second.
            if not comes_true(lambda: _lock(lock, fcntl.LOCK_EX), timeout_s=1):
                raise BrokerError(f"a broker is already running in {self.folder}")
            write_configuration(self)
            self._process = spawn(self, lock=lock.fileno())
        self._give_up_at = time.monotonic() + START_TIMEOUT_S
        self.pid = self._process.pid
        guard.watch(self.pid, epmd_port=self.epmd_port)
        self.store()

    def _wait_until_it_serves(self) -> None:
        try:
            while not self.serves():
                time.sleep(0.05)
        except BaseException:  # Ctrl-C too: without this the node would stay behind
            self.kill()
            raise

    def _signal(self, send: Callable[[int, int], None], number: signal.Signals, timeout_s: float) -> None:
        """Send a signal to the server if it is running, and wait until it has ended."""
        if self.is_running:
            if not self.pid:
                raise BrokerError(f"another process starts the broker in {self.folder}: try again")
            with suppress(ProcessLookupError):
                send(self.pid, number)
            comes_true(lambda: not self.is_running, timeout_s)


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
