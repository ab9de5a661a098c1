"""What the peers train, in PyTorch: the digits' network, one local epoch; see `benchmarks/peers.py`."""

import json
from collections.abc import Sequence

import numpy as np
import torch

LEARNING_RATE, BATCH = 0.1, 32


class Work:
    """The data of a federation, and a network from its first weights."""

    def __init__(self, path: str) -> None:
        """Read what `benchmarks.peers` wrote."""
        with np.load(path) as file:
            data = {name: torch.from_numpy(file[name]) for name in file.files}
        self.clients = int(data["clients"])
        self._data = data
        self._ends = data["ends"].tolist()
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        with torch.no_grad():
            for parameter, name in zip(self.model.parameters(), ("k1", "b1", "k2", "b2"), strict=True):
                parameter.copy_(data[name])

    def part(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a client's examples; several share a part if there are more clients than parts."""
        at = client % len(self._ends)
        mine = slice(self._ends[at - 1] if at else 0, self._ends[at])
        return self._data["x"][mine], self._data["y"][mine]

    def accuracy(self) -> float:
        """Return the accuracy on the held-out examples."""
        with torch.no_grad():
            found = self.model(self._data["test_x"]).argmax(1)
        return float((found == self._data["test_y"]).float().mean())


def train_epoch(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Train one epoch of SGD, in minibatches in a new order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    order = torch.randperm(len(x))
    for rows in order.split(BATCH):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def told(at: Sequence[float], values: Sequence[float]) -> None:
    """Print when each round ended, in seconds, and the accuracy after the last, as the last line."""
    print(json.dumps({"at": list(at), "accuracy": values[-1]}), flush=True)
