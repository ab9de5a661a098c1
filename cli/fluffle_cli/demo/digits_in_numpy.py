"""The task of `fluffle demo` with differential privacy: digits without Keras, so that many workers fit."""

from pathlib import Path
from typing import Final

from fluffle.model import Weights
from fluffle_cli.demo.small_network import OneHiddenLayer
from fluffle_worker.tasks import digits

# The tensors of this network, in the order in which the same one in Keras has them.
TENSORS: Final = ("hidden/kernel", "hidden/bias", "out/kernel", "out/bias")


class DigitsInNumpy(OneHiddenLayer):
    """The network of the ready task digits, which is saved as a Keras model."""

    def save(self, weights: Weights, path: Path) -> None:
        """See Task."""
        names = digits.task.initial_weights(0)
        digits.task.save({name: weights[own] for name, own in zip(names, TENSORS, strict=True)}, path)


task = DigitsInNumpy(64, digits.train_data, digits.eval_data)
