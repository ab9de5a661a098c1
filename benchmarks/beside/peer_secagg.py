"""Rounds of Flower's SecAgg+, for `python -m benchmarks.secagg`; it runs in an environment of its own.

    FLUFFLE_SECAGG=FOLDER python benchmarks/beside/peer_secagg.py

plays them in Flower's simulation. SuperLink and SuperNodes load the same two apps from here. The folder has
`settings.json`, the clients' vectors and a socket: for each line that comes through it, the server plays one
round and answers with a line of JSON. Nobody trains: each client sends its vector as the model that it has.
"""

import json
import os
import socket
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

FOLDER = Path(os.environ["FLUFFLE_SECAGG"])
SETTINGS = json.loads((FOLDER / "settings.json").read_text())
VECTORS, MASKED = FOLDER / "vectors.npy", FOLDER / "masked"


def note_masked(message: Message, context: Context, call_next) -> Message:
    """Write down when a client has its masked vector; this mod stands around Flower's own."""
    reply = call_next(message, context)
    if any("masked_params" in record for record in reply.content.config_records.values()):
        with MASKED.open("a") as notes:
            notes.write(f"{message.metadata.group_id} {time.time()}\n")
    return reply


class Given(NumPyClient):
    """A client whose result is given."""

    def __init__(self, number: int) -> None:
        """Take the client's vector, without reading it yet."""
        self._number = number

    def fit(self, parameters, config):
        """Return the vector as the trained model; all clients have the same weight."""
        return [np.load(VECTORS, mmap_mode="r")[self._number].copy()], 1, {}


def new_client(context: Context):
    """Return a client by its number."""
    return Given(int(context.node_config["partition-id"])).to_client()


class TimedGrid:
    """Notes when each stage has sent its messages and has all replies, and which messages these are."""

    def __init__(self, grid: Grid) -> None:
        """Begin with no stage."""
        self._grid = grid
        self.asked, self.replied, self.sent, self.received = [], [], [], []

    def send_and_receive(self, messages, *, timeout=None):
        """Do as the grid does."""
        self.sent += messages
        self.asked.append(time.time())
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        self.replied.append(time.time())
        self.received += replies
        return replies


def size_of(messages) -> int:
    """Return the bytes of messages as they travel."""
    parts = (part for message in messages for part in get_all_nested_objects(message).values())
    return sum(len(part.deflate()) for part in parts)


class TimedRounds(SecAggPlusWorkflow):
    """SecAgg+ that waits before each round until it is told to play it."""

    def __init__(self, told) -> None:
        """Take over the settings; the weight of each client is 1."""
        self._told = told
        super().__init__(
            SETTINGS["shares"],
            SETTINGS["threshold"],
            max_weight=1.0,
            clipping_range=SETTINGS["clip"],
            quantization_range=SETTINGS["quantization_range"],
            modulus_range=SETTINGS["modulus_range"],
        )

    def __call__(self, grid: Grid, context: Context) -> None:
        """Play one round, and tell its times; what is worked out for that is done after it."""
        self._told.readline()
        timed, number = TimedGrid(grid), str(context.state.config_records["config"]["current_round"])
        began = time.time()
        super().__call__(timed, context)
        ended = time.time()
        notes = [line.split() for line in MASKED.read_text().splitlines()]
        [model] = next(iter(context.state.array_records.values())).to_numpy_ndarrays()
        mean = np.load(VECTORS).mean(axis=0, dtype=np.float64)
        found = {
            "began": began,
            "masked": [float(at) for of_round, at in notes if of_round == number],
            "asked": timed.asked,
            "replied": timed.replied,
            "ended": ended,
            "clients_received_bytes": size_of(timed.sent),
            "clients_sent_bytes": size_of(timed.received),
            "error": float(np.abs(model - mean).max()),
        }
        self._told.write(json.dumps(found) + "\n")
        self._told.flush()


client = ClientApp(client_fn=new_client, mods=[note_masked, secaggplus_mod])
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds with Flower's own FedAvg."""
    clients = SETTINGS["clients"]
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters([np.zeros(SETTINGS["parameters"], np.float32)]),
    )
    legacy = LegacyContext(context, ServerConfig(num_rounds=SETTINGS["rounds"]), strategy)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(FOLDER / "socket"))
        with connection.makefile("rw") as told:
            DefaultWorkflow(fit_workflow=TimedRounds(told))(grid, legacy)


def play() -> None:
    """Play them in Flower's simulation, with one actor for each core."""
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=SETTINGS["clients"],
        backend_config={
            "init_args": {"include_dashboard": False, "_node_ip_address": "127.0.0.1"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    # The actors look for the apps in a module with a name.
    import peer_secagg

    peer_secagg.play()
