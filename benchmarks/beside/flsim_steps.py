"""Steps of FLSim's own FedAsync and FedBuff, for `python -m benchmarks.oracle`; in an environment of its own.

    python benchmarks/beside/flsim_steps.py CASES.npz RESULTS.npz

A case has a name, a `rate`, an `exponent` of the polynomial discount, a `model`, and for each update
its staleness and its `delta`, or for FedAsync the `final` model of the client.
"""

import dataclasses
import sys

import numpy as np
import torch

plain_dataclass = dataclasses.dataclass


def hashable_dataclass(cls: type | None = None, /, **options: bool):
    """Make a dataclass, and of FLSim's one with a hash.

    Since Python 3.11 a dataclass without one is refused as a default, and FLSim, which is older, has many.
    """

    def make(cls: type) -> type:
        return plain_dataclass(cls, **options, **({"unsafe_hash": True} if "flsim" in cls.__module__ else {}))

    return make if cls is None else make(cls)


dataclasses.dataclass = hashable_dataclass
from flsim.interfaces.model import IFLModel
from flsim.optimizers.async_aggregators import (
    AsyncAggregationType,
    AsyncAggregator,
    FedAvgWithLRAsyncAggregator,
    FedAvgWithLRFedBuffAggregator,
)
from flsim.utils.async_trainer.async_staleness_weights import PolynomialStalenessWeight


class Model(IFLModel):
    """A vector, as FLSim wants a model."""

    def __init__(self, vector: np.ndarray) -> None:
        self.module = torch.nn.Linear(vector.size, 1, bias=False)
        with torch.no_grad():
            self.module.weight.copy_(torch.from_numpy(vector)[None])

    @property
    def vector(self) -> np.ndarray:
        """The vector."""
        return self.module.weight.detach().numpy()[0].copy()

    def fl_get_module(self) -> torch.nn.Module:
        """Return what is trained."""
        return self.module

    def fl_forward(self, batch):
        """Do nothing: no model is trained here."""

    def fl_create_training_batch(self, **kwargs):
        """Do nothing: no model is trained here."""

    def fl_cuda(self):
        """Do nothing: no model is trained here."""

    def get_eval_metrics(self, batch):
        """Do nothing: no model is evaluated here."""

    def get_num_examples(self, batch):
        """Do nothing: no model is trained here."""


def fedasync(case: dict[str, np.ndarray]) -> np.ndarray:
    """Return the model after each update was mixed in by itself."""
    model = Model(case["model"])
    aggregator = FedAvgWithLRAsyncAggregator(
        global_model=model,
        lr=float(case["rate"]),
        aggregation_type=AsyncAggregationType.fed_async_aggregation,
    )
    return stepped(aggregator, model, case)


def fedbuff(case: dict[str, np.ndarray]) -> np.ndarray:
    """Return the model after a step of the whole buffer.

    The paper's 1/K is in the rate here, since FLSim adds the updates up and leaves it to its user.
    """
    model, count = Model(case["model"]), len(case["staleness"])
    aggregator = FedAvgWithLRFedBuffAggregator(
        global_model=model, lr=float(case["rate"]) / count, buffer_size=count
    )
    return stepped(aggregator, model, case)


def stepped(aggregator: AsyncAggregator, model: Model, case: dict[str, np.ndarray]) -> np.ndarray:
    """Give an aggregator the updates of a case."""
    # Weights are divided by that of a staleness of avg_staleness, which is 1 by default; that of 0 is 1.
    discount = PolynomialStalenessWeight(exponent=float(case["exponent"]), avg_staleness=0)
    for staleness, delta, final in zip(case["staleness"], case["delta"], case["final"], strict=True):
        aggregator.zero_grad()
        # FLSim's deltas point from the client's last model to its first.
        aggregator.on_client_training_end(
            client_delta=Model(-delta), final_local_model=Model(final), weight=discount.weight(int(staleness))
        )
    return model.vector


def main() -> None:
    """Read the cases, and write the models."""
    strategies = {"fedasync": fedasync, "fedbuff": fedbuff}
    with np.load(sys.argv[1]) as file:
        arrays = {name: file[name] for name in file.files}
    cases = sorted({name.rpartition("/")[0] for name in arrays})
    found = {}
    for name in cases:
        case = {key.rpartition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        found[name] = strategies[name.partition("-")[0]](case)
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
