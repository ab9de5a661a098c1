"""FedAsync's proximal term for any Keras model: it keeps the weights near those that a round started from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fluffle_worker.keras_task.backend import KerasModel, import_keras, inner_optimizer, require_tensorflow

if TYPE_CHECKING:
    import keras


class ProximalTerm:
    """Adds the gradient of mu/2 * ||x - x_base||^2, which is mu * (x - x_base), to that of the loss.

    It replaces the optimizer's `apply`, so that it works with any training step.
    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019), section 3, equation 2.
    """

    def __init__(self, model: KerasModel) -> None:
        self._keras = import_keras()
        self._model = model
        self._mu = self._keras.Variable(0.0, trainable=False, name="proximal_mu")
        self._base: dict[int, keras.Variable] = {}
        # The inner one gets the gradients in their true scale.
        optimizer = inner_optimizer(model)
        self._plain_apply = optimizer.apply
        optimizer.apply = self._apply

    def start_round(self, mu: float) -> None:
        """Take the current weights for x_base. The step is compiled again if mu becomes zero or positive."""
        if mu > 0:
            # JAX would compile the base of the first round into the training step.
            require_tensorflow("the plan's proximal term (proximal_mu)")
        trained = self._model.trainable_variables if mu > 0 else []
        if len(trained) != len(self._base):
            self._base = {id(x): self._keras.Variable(x, trainable=False) for x in trained}
            self._model.make_train_function(force=True)
        self._mu.assign(mu)
        for x in trained:
            self._base[id(x)].assign(x)

    def _apply(
        self, gradients: Sequence[object], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Stand in for `keras.Optimizer.apply`; without variables they are those that it was built with."""
        if self._base:
            variables = trainable_variables or self._model.trainable_variables
            gradients = list(map(self._with_pull, gradients, variables))
        self._plain_apply(gradients, trainable_variables)

    def _with_pull(self, gradient: object, x: keras.Variable) -> object:
        if gradient is None:
            return None
        ops = self._keras.ops
        return ops.add(gradient, ops.cast(self._mu, x.dtype) * (x - self._base[id(x)]))
