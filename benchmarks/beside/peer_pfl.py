"""FedAvg in pfl-research, for `python -m benchmarks.peers`; it runs in an environment of its own.

    python benchmarks/beside/peer_pfl.py DATA.npz ROUNDS
    torchrun --nproc_per_node 2 benchmarks/beside/peer_pfl.py DATA.npz ROUNDS      # in two processes

Each process trains its part of the clients one after the other in one thread.
"""

import os
import sys
import time

import torch
from peer_torch import BATCH, LEARNING_RATE, Work, told
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.dataset import Dataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel


class Network(torch.nn.Module):
    """The network with the two methods that pfl asks for."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        """Return the mean loss of a minibatch."""
        self.eval() if eval else self.train()
        return torch.nn.functional.cross_entropy(self.layers(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, float]:
        """Return nothing: the clients evaluate nothing."""
        return {}


class Rounds(TrainingProcessCallback):
    """Evaluates after each round, and notes the time."""

    def __init__(self, work: Work) -> None:
        self._work, self.at, self.values = work, [], []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Evaluate; pfl goes on after False."""
        self.values.append(self._work.accuracy())
        self.at.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    """Play the rounds, and print when each was evaluated."""
    torch.set_num_threads(1)
    work, rounds = Work(sys.argv[1]), int(sys.argv[2])
    users = list(range(work.clients))
    network = Network(work.model)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    data = [Dataset(work.part(user)) for user in users]
    federated = FederatedDataset(lambda user: data[user], get_user_sampler("minimize_reuse", users))
    note = Rounds(work)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=federated, val_data=federated),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
        callbacks=[note],
    )
    if os.environ.get("RANK", "0") == "0":
        told(note.at, note.values)


if __name__ == "__main__":
    main()
