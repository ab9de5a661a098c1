"""How a RabbitMQ server is found on this machine, configured for one folder, and started."""

import fcntl
import os
import random
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final

from fluffle.errors import BrokerError, ConfigError
from fluffle_cli import guard

LOOPBACK: Final = "127.0.0.1"
SERVER_FOLDER_VARIABLE: Final = "FLUFFLE_RABBITMQ_BIN"
USUAL_SERVER_FOLDERS: Final = (
    "/usr/lib/rabbitmq/bin",  # Debian, Ubuntu, Fedora; the script on their PATH must be run as root
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
)
HOW_TO_INSTALL: Final = f"""RabbitMQ's server was not found on this machine. Install it in one of these ways:
  Debian, Ubuntu:  sudo apt-get install rabbitmq-server
  macOS:           brew install rabbitmq
  Docker:          make secrets && docker compose up --build   (the whole federation in containers)
If it is installed elsewhere, set {SERVER_FOLDER_VARIABLE} to the folder that holds rabbitmq-server."""

# Below the range from which clients get their ports: a client that reconnects to a port of that range while
# the node is down may get that port as its own; it then talks to itself, and the node cannot come back.
_PORTS: Final = range(20_000, 32_000)
# RabbitMQ's scripts redirect descriptors of one digit, and shells keep their own from 10 on.
_LOWEST_LOCK_DESCRIPTOR: Final = 100
# A subfolder of the node's folder for more *.conf files; only benchmarks create it.
EXTRA_CONFIGURATION: Final = "conf.d"
_ONLY_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"
# The first node that starts looks for the others without success, on 3.10 for 5 s unless told otherwise, and
# they wait for it meanwhile. On one machine a second is enough.
_CLUSTER_ON_ONE_MACHINE: Final = """
cluster_formation.discovery_retry_limit = 2
cluster_formation.discovery_retry_interval = 500
"""


@dataclass(frozen=True, slots=True)
class NodeTls:
    """TLS with the server's certificate in a folder of `fluffle broker certs`.

    Without `passwords` every client must show a certificate, as in broker_config/tls.conf.
    """

    certificates: Path
    passwords: bool = True

    @property
    def authority(self) -> Path:
        """The certificate that clients must trust."""
        return self.certificates / "ca.pem"


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
    # The server's process; 0 after a clean stop.
    pid: int = 0
    # The folder of its certificates; None for AMQP without TLS.
    certificates: str | None = None
    passwords: bool = True
    # Which node of a cluster this is, from 1 on, and of how many; 0 for a single node.
    number: int = 0
    cluster_size: int = 0

    @property
    def tls(self) -> NodeTls | None:
        """How it uses TLS, or None."""
        return None if self.certificates is None else NodeTls(Path(self.certificates), self.passwords)

    @property
    def name(self) -> str:
        """The node's Erlang name. Names may repeat, because each node or cluster has its own epmd."""
        return _node_name(self.number)

    @property
    def ports(self) -> list[int]:
        """Every port that only this node listens on; the nodes of a cluster share their epmd."""
        ports = [self.amqp_port, self.distribution_port, self.management_port]
        return [port for port in [*ports, None if self.number else self.epmd_port] if port is not None]


def new_settings(ports: Sequence[int], *, management: bool, tls: NodeTls | None) -> NodeSettings:
    """Return the settings of a new node on these four ports, with a new user and password."""
    amqp, ui, distribution, epmd = ports
    return NodeSettings(
        server_folder=str(find_server(os.environ)),
        user=f"fluffle-{token_hex(3)}",
        password=token_hex(16),
        amqp_port=amqp,
        management_port=ui if management else None,
        distribution_port=distribution,
        epmd_port=epmd,
        certificates=None if tls is None else str(tls.certificates.resolve()),
        passwords=tls is None or tls.passwords,
    )


def find_server(environment: Mapping[str, str]) -> Path:
    """Find the folder of `rabbitmq-server`; if there is none, ConfigError says how to install it."""

    def has_server(folder: str) -> bool:
        return os.access(Path(folder) / "rabbitmq-server", os.X_OK)

    given = environment.get(SERVER_FOLDER_VARIABLE)
    if given:
        if not has_server(given):
            raise ConfigError(
                f"{SERVER_FOLDER_VARIABLE} is {given}, but there is no rabbitmq-server in that folder"
            )
        return Path(given).resolve()
    on_path = environment.get("PATH", "").split(os.pathsep)
    for folder in (*USUAL_SERVER_FOLDERS, *filter(None, on_path)):
        if has_server(folder):
            return Path(folder)
    raise ConfigError(HOW_TO_INSTALL)


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Find consecutive free ports; the port before them is held meanwhile, so that others get other ports."""
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
        # As the server does it: connections that linger after a node was killed do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Take the folder's lock, which the server inherits; BrokerError if a running server has it."""
    first = os.open(lock_file_of(folder), os.O_RDWR | os.O_CREAT, 0o600)
    descriptor = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, _LOWEST_LOCK_DESCRIPTOR)
    os.close(first)

    def is_taken() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        # `is_locked` in another process holds the lock for a moment: so try for a second.
        if not comes_true(is_taken, timeout_s=1):
            raise BrokerError(f"a broker is already running in {folder}")
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Tell whether a server is alive that was started with this folder's lock."""
    return guard.is_locked(lock_file_of(folder))


def lock_file_of(folder: Path) -> Path:
    """Return the file that a server keeps locked while it lives."""
    return folder / "node.lock"


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically by one that only its owner may read."""
    # A unique name, because one thread may start a node while another stops it; mkstemp gives mode 600.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with open(descriptor, "w") as file:
        file.write(text)
    Path(draft).replace(path)


def write_configuration(folder: Path, settings: NodeSettings) -> None:
    """Write what the server reads: the shared settings, then this node's addresses and its one user."""
    shared = _shared_configuration()
    lines = [
        (shared / "rabbitmq.conf").read_text(),
        "# From here on: this node only.",
        "# With another default user there is no guest. RabbitMQ creates it when the data folder is empty.",
        f"default_user = {settings.user}",
        f"default_pass = {settings.password}",
        "# RabbitMQ blocks publishers when less than this is free on the disk.",
        "disk_free_limit.absolute = 256MB",
        "log.file.level = info",
    ]
    plugins = "[].\n"
    if settings.tls is None:
        lines.append(f"listeners.tcp.1 = {LOOPBACK}:{settings.amqp_port}")
    else:
        certificates = settings.tls.certificates
        lines += [
            (shared / "tls.conf").read_text(),
            f"listeners.ssl.1 = {LOOPBACK}:{settings.amqp_port}",
            f"ssl_options.cacertfile = {settings.tls.authority}",
            f"ssl_options.certfile = {certificates / 'server.pem'}",
            f"ssl_options.keyfile = {certificates / 'server.key'}",
        ]
        if settings.passwords:
            lines += ["ssl_options.fail_if_no_peer_cert = false", "auth_mechanisms.2 = PLAIN"]
        plugins = "[rabbitmq_auth_mechanism_ssl].\n"
    if settings.management_port is not None:
        lines += [f"management.tcp.ip = {LOOPBACK}", f"management.tcp.port = {settings.management_port}"]
        plugins = (shared / "enabled_plugins").read_text()
    if settings.cluster_size:
        lines += [(shared / "cluster" / "cluster.conf").read_text(), _CLUSTER_ON_ONE_MACHINE]
        lines += [
            f"cluster_formation.classic_config.nodes.{number} = {_node_name(number)}"
            for number in range(1, settings.cluster_size + 1)
        ]
    write_private(folder / "rabbitmq.conf", "\n".join([*lines, ""]))
    write_private(folder / "enabled_plugins", plugins)
    for name in ("data", "log", "home"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    if not cookie_of(folder).exists():  # Erlang would create one itself, from the clock
        write_private(cookie_of(folder), token_hex(16))


def cookie_of(folder: Path) -> Path:
    """Return the file of a node's Erlang cookie; nodes with the same cookie may form a cluster."""
    return folder / "home" / ".erlang.cookie"


def _node_name(number: int) -> str:
    return f"fluffle-{number}@localhost" if number else "fluffle@localhost"


def _shared_configuration() -> Path:
    # A wheel has the files inside the package; an editable install reads them where they are edited.
    inside_wheel = Path(__file__).parent / "broker_config"
    return inside_wheel if inside_wheel.is_dir() else Path(__file__).parents[2] / "broker_config"


def spawn(folder: Path, settings: NodeSettings, *, lock: int) -> subprocess.Popen[bytes]:
    """Start the server, which inherits `lock`, in a session that Ctrl-C in a terminal does not reach."""
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
        raise BrokerError(f"cannot run {program}: {error.strerror}") from error


def server_environment(folder: Path, settings: NodeSettings, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which RabbitMQ's scripts mean this node and no other."""
    # No setting of another RabbitMQ or Erlang on this machine may reach it, and no file in /etc/rabbitmq.
    kept = {
        name: value for name, value in outer.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
    }
    return kept | {
        "HOME": str(folder / "home"),  # holds the Erlang cookie, without which nobody can talk to the node
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
        "RABBITMQ_CONFIG_FILES": str(folder / EXTRA_CONFIGURATION),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "no-advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "no-environment.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        # The script becomes the server instead of waiting for it: so signals reach the server.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_START_ARGS": "-noinput +B i",
    }


def serves_amqp(port: int, tls: NodeTls | None = None) -> bool:
    """Tell whether a broker answers; AMQP is the last thing that it starts, after queues and plugins."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=5) as plain:
            context = ssl.create_default_context(cafile=tls.authority) if tls else None
            with context.wrap_socket(plain, server_hostname=LOOPBACK) if context else plain as peer:
                peer.sendall(b"AMQP\x00\x00\x09\x01")
                return peer.recv(1) == b"\x01"  # a method frame, connection.start
    except ssl.SSLError as error:
        # A broker that asks for a certificate, or whose certificate is not trusted, answers too.
        return isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in (error.reason or "")
    except OSError:
        return False


def complaints(folder: Path, *, count: int = 10) -> str:
    """Quote the first errors in the server's log, which name the cause, or else its last lines."""
    lines: list[str] = []
    for name in ("broker.log", "start.log"):
        with suppress(FileNotFoundError):
            text = (folder / "log" / name).read_text(errors="replace")
            lines += [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "[error]" in line and not line.endswith("> ")]
    return "\n".join(f"  {line[:240]}" for line in errors[:count] or lines[-count:])


def comes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until the condition holds; False if it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
