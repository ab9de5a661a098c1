"""Starts Flower with SecAgg+ in the environment of the peers, and has it play one round at a time."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import ENVIRONMENT, HERE, PEERS
from fluffle import guard
from fluffle.secure.plan import SecurePlan
from fluffle_cli.rabbitmq_server import LOOPBACK, free_ports, is_free
from harness.federation import DEADLINE_S, wait_until

# As in Flower's own example of secure aggregation.
SHARES: Final = 3
THRESHOLD: Final = 2
APP: Final = HERE / "beside" / "peer_secagg.py"
STOPPING_S: Final = 10.0
# The last two of the four stages of a round, which come after "setup" and "share keys".
COLLECT_MASKED_VECTORS: Final = 2
UNMASK: Final = 3
PROJECT: Final = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "secagg"
version = "1.0.0"
description = "Rounds of SecAgg+"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fluffle"

[tool.flwr.app.components]
serverapp = "peer_secagg:server"
clientapp = "peer_secagg:client"
"""

Play = Callable[[], "Round"]
Start = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of secure aggregation took.

    `from_client_s` goes from the moment when the last client has its masked vector until the server has the
    new model, and `from_server_s` from the moment when the server has taken in that vector. In `waited_s` of
    them it waits for those who take the masks off. `error` is the largest difference between the new model
    and the one that the mean of the clients' vectors makes.
    """

    from_client_s: float
    from_server_s: float
    waited_s: float
    whole_s: float
    client_sends_bytes: float
    client_receives_bytes: float
    error: float


def round_of(said: Mapping[str, Any], clients: int) -> Round:
    """Read what Flower's server tells of a round. Raises RuntimeError unless all clients were in it."""
    if len(said["masked"]) != clients or len(said["replied"]) != UNMASK + 1:
        masked, stages = len(said["masked"]), len(said["replied"])
        raise RuntimeError(f"a round of Flower had {masked} of {clients} clients and {stages} of 4 stages")
    return Round(
        from_client_s=said["ended"] - max(said["masked"]),
        from_server_s=said["ended"] - said["replied"][COLLECT_MASKED_VECTORS],
        waited_s=said["replied"][UNMASK] - said["asked"][UNMASK],
        whole_s=said["ended"] - said["began"],
        client_sends_bytes=said["clients_sent_bytes"] / clients,
        client_receives_bytes=said["clients_received_bytes"] / clients,
        error=said["error"],
    )


@contextmanager
def flower(
    folder: Path, vectors: NDArray[np.float32], plan: SecurePlan, rounds: int, *, is_deployed: bool
) -> Iterator[Play]:
    """Start Flower with a client for each vector, and give what plays a round, at most so many times.

    Clip, steps and modulus are those of the plan. Deployed, SuperLink and SuperNodes are processes; else it
    is Flower's simulation.
    """
    folder.mkdir()
    clients, parameters = vectors.shape
    np.save(folder / "vectors.npy", vectors)
    settings = {
        "clients": clients,
        "parameters": parameters,
        "rounds": rounds,
        "shares": SHARES,
        "threshold": THRESHOLD,
        "clip": plan.clip,
        "quantization_range": 2**plan.bits,
        "modulus_range": 2**plan.modulus_bits,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    with socket.socket(socket.AF_UNIX) as door, Processes(folder) as processes:
        door.bind(str(folder / "socket"))
        door.listen()
        door.settimeout(DEADLINE_S)
        if is_deployed:
            _deploy(processes, clients)
        else:
            processes.start("simulation", "python", str(APP))
        try:
            connection, _ = door.accept()
        except TimeoutError:
            raise RuntimeError(f"Flower does not start:\n{processes.said()}") from None
        connection.settimeout(DEADLINE_S)
        with connection, connection.makefile("rw") as server:

            def play() -> Round:
                server.write("play\n")
                server.flush()
                line = server.readline()
                if not line:
                    raise RuntimeError(f"Flower's server has ended:\n{processes.said()}")
                return round_of(json.loads(line), clients)

            yield play


class Processes:
    """Processes of Flower, each with a log in the folder; `with` ends them all."""

    def __init__(self, folder: Path) -> None:
        """Begin with none."""
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment = (
            os.environ
            | ENVIRONMENT
            | {
                "FLUFFLE_SECAGG": str(folder),
                "FLWR_HOME": str(folder / "home"),
                "PYTHONPATH": str(APP.parent),
                # Flower starts its own programs by their names.
                "PATH": f"{PEERS}:{os.environ['PATH']}",
            }
        )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(STOPPING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guard.release(process.pid)

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start a program of the peers' environment."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [PEERS / program, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard.watch(process.pid)
        self._started.append(process)

    def said(self) -> str:
        """Return the ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)


def _deploy(processes: Processes, clients: int) -> None:
    """Start a SuperLink and as many SuperNodes, and submit the app with `flwr run`."""
    app, home = processes.folder / "app", processes.folder / "home"
    app.mkdir()
    home.mkdir()
    (app / APP.name).write_text(APP.read_text())
    (app / "pyproject.toml").write_text(PROJECT)
    with ExitStack() as held:
        [port], *of_nodes = [held.enter_context(free_ports(1)) for _ in range(clients + 1)]
    address = f"{LOOPBACK}:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    processes.start(
        *("superlink", "flower-superlink", "--insecure", "--port", str(port)),
        "--disable-runtime-dependency-installation",
    )
    wait_until(lambda: not is_free(port), "Flower's SuperLink")
    for number, [own_port] in enumerate(of_nodes):
        node_config = f"partition-id={number} num-partitions={clients}"
        processes.start(
            *(f"supernode-{number}", "flower-supernode", "--insecure", "--superlink", address),
            *("--port", str(own_port), "--node-config", node_config),
        )
    processes.start("run", "flwr", "run", str(app), "here")
