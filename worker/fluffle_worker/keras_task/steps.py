"""Training steps and evaluations: the model's train_step gets the same arguments as from `fit`."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from fluffle.task import Progress
from fluffle_worker.keras_task.backend import KerasModel, import_keras, uses_tensorflow
from fluffle_worker.keras_task.data import ArrayData, BatchedData, Minibatch, Minibatches, rows_of

EVALUATION_BATCH_SIZE = 256
ACCURACIES = {"acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"}

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
    train = _train_by_steps if uses_tensorflow() else _train_by_fit
    return train(model, minibatches, epochs, steps_per_epoch, progress)


def evaluation_of(minibatches: Minibatches, batch_size: int) -> Callable[[KerasModel], Metrics]:
    """Return a function that evaluates a model on held-out data: the loss and the compiled metrics.

    The only accuracy is called "accuracy".
    """
    if isinstance(minibatches, BatchedData) and minibatches.is_for_keras:
        return lambda model: _evaluated(model, minibatches.data)
    if isinstance(minibatches, ArrayData) and minibatches.is_dense and uses_tensorflow():
        # Made once: given arrays, Keras would make it again for each evaluation, ten times as slow.
        slices = importlib.import_module("tensorflow").data.Dataset.from_tensor_slices(minibatches.parts)
        data_set = slices.batch(batch_size)
        return lambda model: _evaluated(model, data_set)
    steps = minibatches.per_epoch(batch_size)
    return lambda model: _evaluated(model, minibatches.one_pass(batch_size, None), steps)


def _train_by_steps(
    model: KerasModel, minibatches: Iterator[Minibatch], epochs: int, steps_per_epoch: int, progress: Progress
) -> tuple[int, Metrics]:
    """Call the training step itself: it takes half the time of `fit`, and errors name the user's own line."""
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


def _train_by_fit(
    model: KerasModel, minibatches: Iterator[Minibatch], epochs: int, steps_per_epoch: int, progress: Progress
) -> tuple[int, Metrics]:
    """Let `fit` train, for the backends whose training step is a function of the model's whole state."""
    # Keras knows the length of a PyDataset, and so takes no minibatch more than it trains on.
    data_set_of = type("Epochs", (_Epochs, import_keras().utils.PyDataset), {})
    data_set = data_set_of(minibatches, steps_per_epoch)
    done_before = 0

    def begin_epoch(epoch: int, *_logs: object) -> None:
        nonlocal done_before
        done_before = epoch * steps_per_epoch
        data_set.begin()

    def report(batch: int, **_logs: object) -> None:
        progress(done_before + min(steps_per_epoch, batch + 1), epochs * steps_per_epoch)

    callback = import_keras().callbacks.LambdaCallback(on_epoch_begin=begin_epoch, on_train_batch_end=report)
    # The minibatches are shuffled already.
    logs = model.fit(data_set, epochs=epochs, verbose=0, callbacks=[callback], shuffle=False).history
    return data_set.rows, _named({name: values[-1] for name, values in logs.items()})


class _Epochs:
    """The methods of a PyDataset over endless minibatches, cut into epochs.

    Keras may look at the first minibatches before training begins: then they are returned once more.
    """

    def __init__(self, minibatches: Iterator[Minibatch], steps_per_epoch: int) -> None:
        super().__init__()
        self.rows = 0
        self._minibatches = minibatches
        self._steps_per_epoch = steps_per_epoch
        self._looked_at: list[Minibatch] = []
        self._has_begun = False

    def begin(self) -> None:
        """Start the next epoch."""
        if self._has_begun:
            self._looked_at.clear()
        self._has_begun = True
        self.rows = 0

    def __len__(self) -> int:
        return self._steps_per_epoch

    def __getitem__(self, index: int) -> Minibatch:
        if index < len(self._looked_at):
            minibatch = self._looked_at[index]
        else:
            minibatch = next(self._minibatches)
            if not self._has_begun:
                self._looked_at.append(minibatch)
        self.rows += rows_of(minibatch)
        return minibatch


def _evaluated(model: KerasModel, data: object, steps: int | None = None) -> Metrics:
    return _named(model.evaluate(data, steps=steps, verbose=0, return_dict=True))


def _named(raw: Mapping[str, Any]) -> Metrics:
    """Return metrics as floats, or as arrays where Keras gives a vector.

    The only accuracy is called "accuracy"; several keep the names that Keras gave them.
    """
    flat = dict(_flat(raw))
    accuracies = flat.keys() & (ACCURACIES | {"accuracy"})
    metrics: Metrics = {}
    for name, value in flat.items():
        array = np.asarray(value)
        short = "accuracy" if accuracies == {name} else name
        metrics[short] = array if array.ndim else float(array)
    return metrics


def _flat(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each metric; as in `fit`, a metric that is a dictionary gives one for each of its keys."""
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value
