"""How a RabbitMQ server is found on this machine, configured for one folder, and started."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

from pydantic import BaseModel, Field

from fluffle.errors import BrokerError, ConfigError

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
# A subfolder of the node's folder for more *.conf files; only tests and benchmarks create it.
EXTRA_CONFIGURATION: Final = "conf.d"
COOKIE: Final = "home/.erlang.cookie"
_ONLY_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"


class NodeSettings(BaseModel):
    """All that another process needs to reach, stop or restart a node: the content of its `node.json`."""

    folder: Path = Field(exclude=True)
    # An administrator with every right; there is no other user.
    user: str
    password: str = Field(repr=False)
    amqp_port: int
    # The port of Erlang's port mapper; the nodes of a cluster share one.
    epmd_port: int
    has_management: bool
    # A folder of `fluffle broker certs`; None for AMQP without TLS.
    certificates: Path | None = None
    # Names may repeat, because each node or cluster has its own port mapper.
    name: str = "fluffle@localhost"
    # The server's process; 0 after a clean stop.
    pid: int = 0

    @property
    def ports(self) -> tuple[int, int, int]:
        """The ports that only this node listens on: for AMQP, the UI, and Erlang's distribution."""
        return self.amqp_port, self.amqp_port + 1, self.amqp_port + 2


def find_server(environment: Mapping[str, str]) -> Path:
    """Find the program `rabbitmq-server`; if there is none, ConfigError says how to install it."""
    given = environment.get(SERVER_FOLDER_VARIABLE)
    places = [given] if given else [*USUAL_SERVER_FOLDERS, environment.get("PATH", "")]
    found = shutil.which("rabbitmq-server", path=os.pathsep.join(filter(None, places)))
    if found:
        return Path(found).absolute()
    if given:
        raise ConfigError(
            f"{SERVER_FOLDER_VARIABLE} is {given}, but there is no rabbitmq-server in that folder"
        )
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


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically by one that only its owner may read."""
    # A unique name, because one thread may start a node while another stops it; mkstemp gives mode 600.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with open(descriptor, "w") as file:
        file.write(text)
    Path(draft).replace(path)


def write_configuration(node: NodeSettings) -> None:
    """Write what the server reads: the shared settings, then this node's addresses and its one user."""
    # A wheel has the shared files inside the package; an editable install reads them where they are edited.
    inside_wheel = Path(__file__).parent / "broker_config"
    shared = inside_wheel if inside_wheel.is_dir() else Path(__file__).parents[2] / "broker_config"
    lines = [
        (shared / "rabbitmq.conf").read_text(),
        "# With another default user there is no guest. RabbitMQ creates it when the data folder is empty.",
        f"default_user = {node.user}",
        f"default_pass = {node.password}",
        "# RabbitMQ blocks publishers when less than this is free on the disk.",
        "disk_free_limit.absolute = 256MB",
        "log.file.level = info",
    ]
    plugins = []
    if node.has_management:
        plugins.append("rabbitmq_management")
        lines += [f"management.tcp.ip = {LOOPBACK}", f"management.tcp.port = {node.ports[1]}"]
    if node.certificates is None:
        lines.append(f"listeners.tcp.1 = {LOOPBACK}:{node.amqp_port}")
    else:
        plugins.append("rabbitmq_auth_mechanism_ssl")
        lines += [
            (shared / "tls.conf").read_text(),
            f"listeners.ssl.1 = {LOOPBACK}:{node.amqp_port}",
            f"ssl_options.cacertfile = {node.certificates}/ca.pem",
            f"ssl_options.certfile = {node.certificates}/server.pem",
            f"ssl_options.keyfile = {node.certificates}/server.key",
            "# The user above has a password, and clients need no certificate.",
            "ssl_options.fail_if_no_peer_cert = false",
            "auth_mechanisms.2 = PLAIN",
        ]
    for name in ("data", "log", "home"):
        (node.folder / name).mkdir(exist_ok=True, mode=0o700)
    write_private(node.folder / "rabbitmq.conf", "\n".join([*lines, ""]))
    write_private(node.folder / "enabled_plugins", f"[{','.join(plugins)}].\n")
    cookie = node.folder / COOKIE
    if not cookie.exists():  # Erlang would create one itself, from the clock
        write_private(cookie, token_hex(16))


def spawn(node: NodeSettings, *, lock: int) -> subprocess.Popen[bytes]:
    """Start the server, which inherits `lock`, in a session that Ctrl-C in a terminal does not reach."""
    log = node.folder / "log"
    if (log / "broker.log").exists():
        (log / "broker.log").replace(log / "broker.previous.log")
    with open(log / "start.log", "wb") as output:
        return subprocess.Popen(
            [find_server(os.environ)],
            cwd=node.folder,
            env=server_environment(node),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
        )


def server_environment(node: NodeSettings) -> dict[str, str]:
    """Return the environment in which RabbitMQ's scripts mean this node and no other."""
    # No setting of another RabbitMQ or Erlang on this machine may reach it, and no file in /etc/rabbitmq.
    others = ("RABBITMQ_", "ERL_", "NOTIFY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {
        "HOME": str(node.folder / "home"),  # for the Erlang cookie, which lets others talk to the node
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(node.epmd_port),
        "ERL_CRASH_DUMP_SECONDS": "0",  # a dump is large, and holds the password
        "RABBITMQ_NODENAME": node.name,
        "RABBITMQ_DIST_PORT": str(node.ports[2]),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ONLY_LOOPBACK,
        "RABBITMQ_CTL_ERL_ARGS": _ONLY_LOOPBACK,
        "RABBITMQ_MNESIA_BASE": str(node.folder / "data"),
        "RABBITMQ_LOG_BASE": str(node.folder / "log"),
        "RABBITMQ_LOGS": str(node.folder / "log" / "broker.log"),
        "RABBITMQ_CONFIG_FILE": str(node.folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(node.folder / EXTRA_CONFIGURATION),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(node.folder / "no-advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(node.folder / "no-environment.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(node.folder / "enabled_plugins"),
        # The script becomes the server instead of waiting for it: so signals reach the server.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_START_ARGS": "-noinput +B i",
    }


def first_errors(folder: Path, *, count: int = 10) -> str:
    """Quote the first errors in the server's log, which name the cause, or else its last lines."""
    logs = (folder / "log" / name for name in ("broker.log", "start.log"))
    text = "".join(log.read_text(errors="replace") for log in logs if log.exists())
    lines = [line for line in text.splitlines() if line.strip()]
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
