"""FedAvg in Flower's simulation, for `python -m benchmarks.peers`; it runs in an environment of its own.

    python benchmarks/beside/peer_flower.py DATA.npz ROUNDS

Each actor has one CPU and computes in one thread, so that there are as many actors as cores. It keeps the
data and its network from client to client, which Flower leaves to the program.
"""

import sys
import time
from functools import cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peer_torch import Work, told, train_epoch

client, server = ClientApp(), ServerApp()


@cache
def work(path: str) -> Work:
    """Return the data and a network, once in each process."""
    torch.set_num_threads(1)
    return Work(path)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train one local epoch from the model that has come."""
    mine = work(str(message.content["config"]["data"]))
    x, y = mine.part(int(context.node_config["partition-id"]))
    mine.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_epoch(mine.model, x, y)
    sent = {
        "arrays": ArrayRecord(mine.model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(content=RecordDict(sent), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds, and print when each was evaluated."""
    del context
    path, rounds = sys.argv[1], int(sys.argv[2])
    mine, at, values = work(path), [], []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        del number
        mine.model.load_state_dict(arrays.to_torch_state_dict())
        values.append(mine.accuracy())
        at.append(time.perf_counter())
        return MetricRecord({"accuracy": values[-1]})

    FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(mine.model.state_dict()),
        num_rounds=rounds,
        train_config=ConfigRecord({"data": path}),
        evaluate_fn=evaluate,
    )
    told(at, values)


def play() -> None:
    """Play the federation."""
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=Work(sys.argv[1]).clients,
        backend_config={
            "init_args": {"include_dashboard": False, "_node_ip_address": "127.0.0.1"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    # The actors look for the functions in a module with a name.
    import peer_flower

    peer_flower.play()
