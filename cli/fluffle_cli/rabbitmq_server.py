"""How a RabbitMQ server is found on this machine, configured for one folder, and spawned."""

import fcntl
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final

from fluffle.errors import BrokerError, ConfigError
from fluffle_cli import guard
from fluffle_cli.node_tls import AMQP_HEADER, METHOD_FRAME, NodeTls, serves_amqps, tls_configuration

LOOPBACK: Final = "127.0.0.1"
SERVER_FOLDER_VARIABLE: Final = "FLUFFLE_RABBITMQ_BIN"
USUAL_SERVER_FOLDERS: Final = (
    "/usr/lib/rabbitmq/bin",  # Debian, Ubuntu, Fedora; the script on their PATH insists on being root
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
)
HOW_TO_INSTALL: Final = f"""RabbitMQ's server was not found on this machine. One of these brings it:
  Debian, Ubuntu:  sudo apt-get install rabbitmq-server
  macOS:           brew install rabbitmq
  Docker:          make secrets && docker compose up --build   (the whole federation in containers)
If it is installed elsewhere, set {SERVER_FOLDER_VARIABLE} to the folder that holds rabbitmq-server."""

# Below the range from which clients get their ports: one that reconnects to a port of that range while the
# node is down can be given that very port as its own; it then talks to itself, and the node cannot come back.
_PORTS: Final = range(20_000, 32_000)
# RabbitMQ's scripts redirect descriptors of one digit, and shells keep their own from 10 on.
_LOWEST_LOCK_DESCRIPTOR: Final = 100
# A folder of further settings, below that of the node; nothing but a benchmark puts any there.
MORE_SETTINGS: Final = "no-more.d"
_ONLY_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"
# The first node to come up looks for the others in vain, and on 3.10 for 5 s unless told otherwise, while
# they wait for it. On one machine a second is plenty.
_CLUSTER_ON_ONE_MACHINE: Final = """
cluster_formation.discovery_retry_limit = 2
cluster_formation.discovery_retry_interval = 500
"""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """All that another process needs to reach, stop or restart a node: the content of its `node.json`."""

    server_folder: str
    user: str
    password: str
    amqp_port: int
    management_port: int | None
    distribution_port: int
    epmd_port: int
    # The server's process; 0 after it was stopped in good order.
    pid: int = 0
    # The folder of its certificates; None is AMQP in plain text, and else all of it is TLS.
    certificates: str | None = None
    passwords: bool = True
    # Which node of a cluster this is, from 1 on, and of how many; 0 for a node that stands alone.
    number: int = 0
    cluster_size: int = 0

    @property
    def tls(self) -> NodeTls | None:
        """How it speaks TLS, or None."""
        return None if self.certificates is None else NodeTls(Path(self.certificates), self.passwords)

    @property
    def name(self) -> str:
        """The node's name for Erlang. Each node or cluster has an epmd of its own: the same do for all."""
        return _node_name(self.number)

    @property
    def ports(self) -> list[int]:
        """Every port that this node alone listens on: the nodes of a cluster share their epmd."""
        ports = [self.amqp_port, self.distribution_port]
        if not self.number:
            ports.append(self.epmd_port)
        return ports if self.management_port is None else [*ports, self.management_port]


def find_server(environment: Mapping[str, str]) -> Path:
    """Find the folder with `rabbitmq-server`; without one, ConfigError with the commands that install it."""
    named = environment.get(SERVER_FOLDER_VARIABLE)
    if named:
        if not _has_server(Path(named)):
            raise ConfigError(
                f"{SERVER_FOLDER_VARIABLE} is {named}, but there is no rabbitmq-server in that folder"
            )
        return Path(named).resolve()
    on_path = environment.get("PATH", "").split(os.pathsep)
    for folder in (*USUAL_SERVER_FOLDERS, *filter(None, on_path)):
        if _has_server(Path(folder)):
            return Path(folder)
    raise ConfigError(HOW_TO_INSTALL)


def _has_server(folder: Path) -> bool:
    return os.access(folder / "rabbitmq-server", os.X_OK)


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Find free ports in a row; the one before them is held meanwhile, so that parallel starts get others."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(_PORTS.start, _PORTS.stop, 8)
        with socket.socket() as held:
            try:
                held.bind((LOOPBACK, first))
            except OSError:
                continue
            ports = list(range(first + 1, first + 1 + count))
            if all(map(is_free, ports)):
                yield ports
                return
    raise BrokerError(f"no {count} free ports next to each other between {_PORTS.start} and {_PORTS.stop}")


def is_free(port: int) -> bool:
    """Tell whether a node could listen on this port now."""
    with socket.socket() as probe:
        # As the server does it: connections that linger from a node that was killed are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Take the folder's lock, to be handed to the server; BrokerError when a running server has it."""
    first = os.open(lock_file_of(folder), os.O_RDWR | os.O_CREAT, 0o600)
    descriptor = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, _LOWEST_LOCK_DESCRIPTOR)
    os.close(first)
    try:
        # Not at once: somebody who only looks holds it for a moment.
        if not comes_true(lambda: _lock(descriptor), timeout_s=1):
            raise BrokerError(f"a broker runs in {folder} already")
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Tell whether a server lives that was spawned with this folder's lock."""
    return guard.is_locked(lock_file_of(folder))


def lock_file_of(folder: Path) -> Path:
    """Return the file that a server holds locked as long as it lives."""
    return folder / "node.lock"


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Replace the file at once by one that only its owner may read."""
    # A name of its own, since one thread may start a node while another ends it; mkstemp gives mode 600.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with open(descriptor, "w") as file:
        file.write(text)
    Path(draft).replace(path)


def write_configuration(folder: Path, settings: NodeSettings) -> None:
    """Write what the server reads: the shared settings, then this node's addresses and its one user."""
    shared = _shared_configuration()
    listener = f"{LOOPBACK}:{settings.amqp_port}"
    private = f"""
# From here on: this node alone.
# With a default user of another name there is no guest. It is made when the data folder is still empty.
default_user = {settings.user}
default_pass = {settings.password}
# When less than this is left on the disk, publishers are held up.
disk_free_limit.absolute = 256MB
log.file.level = info
"""
    plugins = "[].\n"
    if settings.tls is None:
        private += f"listeners.tcp.1 = {listener}\n"
    else:
        private += tls_configuration((shared / "tls.conf").read_text(), settings.tls, listener=listener)
        plugins = "[rabbitmq_auth_mechanism_ssl].\n"
    if settings.management_port is not None:
        private += f"management.tcp.ip = {LOOPBACK}\nmanagement.tcp.port = {settings.management_port}\n"
        plugins = (shared / "enabled_plugins").read_text()
    if settings.cluster_size:
        private += (shared / "cluster" / "cluster.conf").read_text() + _CLUSTER_ON_ONE_MACHINE
        for number in range(1, settings.cluster_size + 1):
            private += f"cluster_formation.classic_config.nodes.{number} = {_node_name(number)}\n"
    write_private(folder / "rabbitmq.conf", (shared / "rabbitmq.conf").read_text() + private)
    write_private(folder / "enabled_plugins", plugins)
    for name in ("data", "log", "home"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    if not cookie_of(folder).exists():  # Erlang would make one itself, from the clock
        write_private(cookie_of(folder), token_hex(16))


def cookie_of(folder: Path) -> Path:
    """Return where a node keeps its Erlang cookie; nodes with the same one may form a cluster."""
    return folder / "home" / ".erlang.cookie"


def _node_name(number: int) -> str:
    return f"fluffle-{number}@localhost" if number else "fluffle@localhost"


def _shared_configuration() -> Path:
    # A wheel brings the files inside the package; an editable install reads them where they are edited.
    inside_wheel = Path(__file__).parent / "broker_config"
    return inside_wheel if inside_wheel.is_dir() else Path(__file__).parents[2] / "broker_config"


def spawn(folder: Path, settings: NodeSettings, *, lock: int) -> subprocess.Popen[bytes]:
    """Start the server, which inherits `lock`, in a session that a terminal's Ctrl-C does not reach."""
    program = Path(settings.server_folder) / "rabbitmq-server"
    log = folder / "log"
    if (log / "broker.log").exists():
        (log / "broker.log").replace(log / "broker.previous.log")
    try:
        with open(log / "start.log", "wb") as output:
            return subprocess.Popen(
                [program],
                cwd=folder,
                env=server_environment(folder, settings, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
            )
    except OSError as error:
        raise BrokerError(f"{program} cannot be run: {error.strerror}") from error


def server_environment(folder: Path, settings: NodeSettings, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which RabbitMQ's scripts mean this node and no other."""
    # Nothing of another RabbitMQ or Erlang on this machine may leak in, nor files under /etc/rabbitmq.
    kept = {
        name: value for name, value in outer.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
    }
    return kept | {
        "HOME": str(folder / "home"),  # holds the Erlang cookie, without which nobody talks to the node
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(settings.epmd_port),
        "ERL_CRASH_DUMP_SECONDS": "0",  # a dump is large, and holds the password
        "RABBITMQ_NODENAME": settings.name,
        "RABBITMQ_DIST_PORT": str(settings.distribution_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ONLY_LOOPBACK,
        "RABBITMQ_CTL_ERL_ARGS": _ONLY_LOOPBACK,
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": str(folder / "log" / "broker.log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / MORE_SETTINGS),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "no-advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "no-environment.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        # The script becomes the server instead of waiting for it: what we start is what we signal.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_START_ARGS": "-noinput +B i",
    }


def serves_amqp(port: int, tls: NodeTls | None = None) -> bool:
    """Tell whether a broker answers; AMQP is the last thing that it starts, after queues and plugins."""
    if tls is not None:
        return serves_amqps(LOOPBACK, port, tls.authority)
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=5) as peer:
        peer.sendall(AMQP_HEADER)
        return peer.recv(1) == METHOD_FRAME  # connection.start
    return False


def complaints(folder: Path, *, count: int = 10) -> str:
    """Quote the errors that the server logged first, since the cause stands there, or else its last lines."""
    lines: list[str] = []
    for name in ("broker.log", "start.log"):
        with suppress(FileNotFoundError):
            text = (folder / "log" / name).read_text(errors="replace")
            lines += [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "[error]" in line and not line.endswith("> ")]
    return "\n".join(f"  {line[:240]}" for line in errors[:count] or lines[-count:])


def comes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until the condition holds; False when it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
