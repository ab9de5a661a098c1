"""Running training steps and evaluations: the model's own train_step gets what `fit` would give it."""

from __future__ import annotations

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
        # Made once: from arrays, Keras would make it again for each evaluation, ten times as slow.
        slices = importlib.import_module("tensorflow").data.Dataset.from_tensor_slices(minibatches.parts)
        data_set = slices.batch(batch_size)
        return lambda model: _evaluated(model, data_set)
    steps = minibatches.per_epoch(batch_size)
    return lambda model: _evaluated(model, _generator(minibatches.one_pass(batch_size, None)), steps)


def _train_by_steps(
    model: KerasModel, minibatches: Iterator[Minibatch], epochs: int, steps_per_epoch: int, progress: Progress
) -> tuple[int, Metrics]:
    """Call the training step itself: half the time of `fit`, and an error keeps the user's own line."""
    model.make_train_function()
    at_once = int(model.steps_per_execution)
    examples = 0
    logs: Mapping[str, Any] = {}
    for epoch in range(epochs):
        model.reset_metrics()
        examples = 0
        for start in range(0, steps_per_epoch, at_once):
            some = list(islice(minibatches, min(at_once, steps_per_epoch - start)))
            logs = model.train_function(iter(some))
            examples += sum(map(rows_of, some))
            progress(epoch * steps_per_epoch + start + len(some), epochs * steps_per_epoch)
    # Those of the whole epoch, unless the model's own train_step returns others.
    of_epoch = model.get_metrics_result()
    return examples, _named(of_epoch if of_epoch.keys() == logs.keys() else logs)


def _train_by_fit(
    model: KerasModel, minibatches: Iterator[Minibatch], epochs: int, steps_per_epoch: int, progress: Progress
) -> tuple[int, Metrics]:
    """Let `fit` train, for the backends whose training step is a function of the model's whole state."""
    # Of a PyDataset alone Keras knows the end before it comes, and takes no minibatch more.
    data_set_of = type("Epochs", (_Epochs, import_keras().utils.PyDataset), {})
    stream = data_set_of(minibatches, steps_per_epoch)
    now = 0

    def begin(epoch: int, *_logs: object) -> None:
        nonlocal now
        now = epoch * steps_per_epoch
        stream.begin()

    def tell(batch: int, **_logs: object) -> None:
        progress(now + min(steps_per_epoch, batch + 1), epochs * steps_per_epoch)

    callback = import_keras().callbacks.LambdaCallback(on_epoch_begin=begin, on_train_batch_end=tell)
    # The minibatches are shuffled already.
    logs = model.fit(stream, epochs=epochs, verbose=0, callbacks=[callback], shuffle=False).history
    return stream.rows, _named({name: values[-1] for name, values in logs.items()})


class _Epochs:
    """What a PyDataset is asked for, of minibatches that never end: an epoch of so many after the other.

    Keras may look at the first minibatches before training begins: they are given once more then.
    """

    def __init__(self, minibatches: Iterator[Minibatch], steps_per_epoch: int) -> None:
        super().__init__()
        self.rows = 0
        self._minibatches = minibatches
        self._steps_per_epoch = steps_per_epoch
        self._looked_at: list[Minibatch] = []
        self._has_begun = False

    def begin(self) -> None:
        """Begin the next epoch."""
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


def _generator(minibatches: Iterator[Minibatch]) -> Iterator[Minibatch]:
    yield from minibatches


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
