"""Training steps, FedAsync's proximal term, and evaluations.

The model's train_step gets the same arguments as from `fit`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from fluffle.task import Progress
from fluffle_worker.keras_task.backend import (
    KerasModel,
    KerasVariable,
    import_keras,
    inner_optimizer,
    require_tensorflow,
    uses_tensorflow,
)
from fluffle_worker.keras_task.data import ArrayData, BatchedData, Minibatch, Minibatches, rows_of

EVALUATION_BATCH_SIZE = 256
ACCURACIES = {"accuracy", "acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"}

Metrics = dict[str, Any]


def train_epochs(
    model: KerasModel,
    minibatches: Iterator[Minibatch],
    *,
    epochs: int,
    steps_per_epoch: int,
    progress: Progress,
) -> tuple[int, Metrics]:
    """Train on `minibatches`, which never end; return the examples and the metrics of the last epoch."""
    if not uses_tensorflow():
        return _train_by_fit(model, minibatches, epochs, steps_per_epoch, progress)
    # Calling the training step takes half the time of `fit`, and errors name the user's own line.
    model.make_train_function()
    per_call = int(model.steps_per_execution)
    examples = 0
    logs: Mapping[str, Any] = {}
    for epoch in range(epochs):
        model.reset_metrics()
        examples = 0
        for start in range(0, steps_per_epoch, per_call):
            some = list(islice(minibatches, min(per_call, steps_per_epoch - start)))
            logs = model.train_function(iter(some))
            examples += sum(map(rows_of, some))
            progress(epoch * steps_per_epoch + start + len(some), epochs * steps_per_epoch)
    # The metrics of the whole epoch, unless the model's own train_step returns others.
    of_epoch = model.get_metrics_result()
    return examples, _named(of_epoch if of_epoch.keys() == logs.keys() else logs)


def evaluation_of(minibatches: Minibatches, batch_size: int) -> Callable[[KerasModel], Metrics]:
    """Return a function that evaluates a model on held-out data: the loss and the compiled metrics.

    The only accuracy is called "accuracy".
    """
    if isinstance(minibatches, BatchedData) and minibatches.is_for_keras:
        return lambda model: _evaluated(model, minibatches.data)
    if isinstance(minibatches, ArrayData) and not minibatches.is_sparse and uses_tensorflow():
        to_tensor = importlib.import_module("tensorflow").convert_to_tensor
        map_structure = import_keras().tree.map_structure
        batches = [map_structure(to_tensor, each) for each in minibatches.one_pass(batch_size, None)]
        return lambda model: _evaluated_in_steps(model, batches)
    steps = minibatches.per_epoch(batch_size)
    return lambda model: _evaluated(model, minibatches.one_pass(batch_size, None), steps)


def _train_by_fit(
    model: KerasModel, minibatches: Iterator[Minibatch], epochs: int, steps_per_epoch: int, progress: Progress
) -> tuple[int, Metrics]:
    """Let `fit` train, for the backends whose training step is a function of the model's whole state."""
    keras = import_keras()
    first = next(minibatches)
    # Otherwise `fit` would take the first minibatches for this, and the first round would train on others.
    model._symbolic_build(data_batch=first)
    following = chain([first], minibatches)
    rows: list[int] = []
    done_before = 0

    def take(_data_set: object, _index: int) -> Minibatch:
        minibatch = next(following)
        rows.append(rows_of(minibatch))
        return minibatch

    def begin_epoch(epoch: int, *_logs: object) -> None:
        nonlocal done_before
        done_before = epoch * steps_per_epoch

    def report(batch: int, **_logs: object) -> None:
        progress(done_before + min(steps_per_epoch, batch + 1), epochs * steps_per_epoch)

    # Keras knows the length of a PyDataset, and so takes no minibatch more than it trains on.
    methods = {"__len__": lambda _: steps_per_epoch, "__getitem__": take}
    data_set = type("Epochs", (keras.utils.PyDataset,), methods)()
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch, on_train_batch_end=report)
    logs = model.fit(data_set, epochs=epochs, verbose=0, callbacks=[callback], shuffle=False).history
    return sum(rows[-steps_per_epoch:]), _named({name: values[-1] for name, values in logs.items()})


def _evaluated_in_steps(model: KerasModel, batches: Sequence[Minibatch]) -> Metrics:
    """Evaluate a model of TensorFlow: what `evaluate` does, without the data set that it makes each time."""
    model.make_test_function()
    model.reset_metrics()
    per_call = int(model.steps_per_execution)
    logs: Mapping[str, Any] = {}
    for start in range(0, len(batches), per_call):
        logs = model.test_function(iter(batches[start : start + per_call]))
    # Those of all batches, unless the model's own test_step returns others.
    of_all = model.get_metrics_result()
    return _named(of_all if of_all.keys() == logs.keys() else logs)


def _evaluated(model: KerasModel, data: object, steps: int | None = None) -> Metrics:
    return _named(model.evaluate(data, steps=steps, verbose=0, return_dict=True))


def _named(raw: Mapping[str, Any]) -> Metrics:
    """Return metrics as floats, or as arrays where Keras gives a vector.

    The only accuracy is called "accuracy"; several keep the names that Keras gave them.
    """
    flat = {name: np.asarray(value) for name, value in _flat(raw)}
    accuracies = flat.keys() & ACCURACIES
    return {
        "accuracy" if accuracies == {name} else name: array if array.ndim else float(array)
        for name, array in flat.items()
    }


def _flat(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each metric; as in `fit`, a metric that is a dictionary gives one for each of its keys."""
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


class ProximalTerm:
    """Adds the gradient of mu/2 * ||x - x_base||^2, which is mu * (x - x_base), to that of the loss.

    It replaces the optimizer's `apply`, so that it works with any training step.
    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019), section 3, equation 2.
    """

    def __init__(self, model: KerasModel) -> None:
        self._keras = import_keras()
        self._model = model
        self._mu = self._keras.Variable(0.0, trainable=False, name="proximal_mu")
        self._base: dict[int, KerasVariable] = {}
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
        self, gradients: Sequence[object], trainable_variables: Sequence[KerasVariable] | None = None
    ) -> None:
        """Stand in for `keras.Optimizer.apply`; without variables they are those that it was built with."""
        if self._base:
            variables = trainable_variables or self._model.trainable_variables
            gradients = list(map(self._with_pull, gradients, variables))
        self._plain_apply(gradients, trainable_variables)

    def _with_pull(self, gradient: object, x: KerasVariable) -> object:
        if gradient is None:
            return None
        ops = self._keras.ops
        return ops.add(gradient, ops.cast(self._mu, x.dtype) * (x - self._base[id(x)]))
