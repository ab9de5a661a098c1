"""A task with PyTorch: a small network for handwritten digits.

    pip install torch
    fluffle task check --task examples.pytorch_task:task
    fluffle demo --task examples.pytorch_task:task --target "accuracy>=0.9"

Only numpy arrays cross the border: `state_dict()` becomes named arrays, and `load_state_dict()` reads them
back. `fluffle.task.Task` says what each method must do.
"""

from collections.abc import Mapping
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

from fluffle.model import Group, Weights
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model, write_model
from fluffle.task import Progress, Site, Trained

HELD_OUT = 300
LEARNING_RATE = 0.1


def build_model() -> torch.nn.Module:
    """Return a network with one hidden layer."""
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32),
        torch.nn.BatchNorm1d(32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 10),
    )


class PyTorchTask:
    """A torch model, trained with SGD on the cross-entropy, on the CPU."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        examples = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
        self._held_out = examples[:HELD_OUT]
        self._examples = examples
        self._mine = Subset(examples, [])
        self._model = build_model()

    def initial_weights(self, seed: int) -> Weights:
        """Return the weights of a fresh model, drawn from the seed."""
        torch.manual_seed(seed)
        self._model = build_model()
        return self._arrays()

    def tensor_groups(self) -> Mapping[str, Group]:
        """Declare the moving means and variances of BatchNorm as statistics, which are averaged as values."""
        return {name: "statistic" for name, each in self._model.named_buffers() if each.is_floating_point()}

    def prepare(self, site: Site) -> int:
        """Take every count-th of the images that are not held out; your own task reads its files here."""
        self._mine = Subset(self._examples, range(HELD_OUT + site.index, len(self._examples), site.count))
        return len(self._mine)

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Train as many minibatches as the plan says, with a fresh optimizer."""
        self._assign(weights)
        torch.manual_seed(seed)
        rate = LEARNING_RATE if plan.learning_rate is None else plan.learning_rate
        optimizer = torch.optim.SGD(self._model.parameters(), lr=rate * plan.learning_rate_scale)
        base = [parameter.detach().clone() for parameter in self._model.parameters()]
        # BatchNorm cannot train on a last minibatch of one example, so an incomplete one is left out.
        batch_size = min(plan.batch_size, len(self._mine))
        loader = DataLoader(self._mine, batch_size, shuffle=True, drop_last=True)
        total = plan.local_steps or plan.local_epochs * len(loader)
        losses = []
        self._model.train()
        for done, (images, labels) in enumerate(islice(chain.from_iterable(repeat(loader)), total), start=1):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self._model(images), labels)
            losses.append(loss.item())
            if plan.proximal_mu:
                pairs = zip(self._model.parameters(), base, strict=True)
                loss = loss + plan.proximal_mu / 2 * sum((x - x_base).square().sum() for x, x_base in pairs)
            loss.backward()
            optimizer.step()
            progress(done, total)
        examples = min(len(self._mine), total * batch_size)
        return Trained(self._arrays(), examples, {"loss": float(np.mean(losses))})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """Return loss and accuracy on the images that no site trains on."""
        self._assign(weights)
        images, labels = self._held_out
        self._model.eval()
        with torch.no_grad():
            scores = self._model(images)
        return {
            "loss": torch.nn.functional.cross_entropy(scores, labels).item(),
            "accuracy": (scores.argmax(dim=1) == labels).float().mean().item(),
        }

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.safetensors` file; unlike a pickle it cannot run code when it is read."""
        write_model(path, weights)

    def load(self, path: Path) -> Weights:
        """Read a `.safetensors` file."""
        return read_model(path)

    def _arrays(self) -> Weights:
        return {name: tensor.numpy().copy() for name, tensor in self._model.state_dict().items()}

    def _assign(self, weights: Weights) -> None:
        # Copied, since the arrays may be read-only.
        self._model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})


task = PyTorchTask()
