"""The weights of a Keras model: which are trained, which are statistics, and which are frozen.

Keras knows two kinds of weights, trainable or not. A weight that is not trainable may be a statistic, such as
the moving variance of a BatchNormalization, or frozen, such as the kernel under a LoRA adapter.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.model import Group
from fluffle_worker.keras_task.backend import KerasLayer, KerasModel, KerasVariable, import_keras

MAX_NAMED = 30


def named_weights(model: KerasModel) -> dict[str, KerasVariable]:
    """Name each weight by its path, without the model's own name, which Keras numbers.

    The state of seed generators and of stateful recurrent layers is not a weight.
    """
    states = {
        id(variable) for layer in _stateful_layers(model) for variable in layer._non_trainable_variables
    }
    named: dict[str, KerasVariable] = {}
    times: Counter[str] = Counter()
    for variable in model.weights:
        if id(variable) in states:
            continue
        path = variable.path.removeprefix(f"{model.name}/")
        times[path] += 1
        named[path if times[path] == 1 else f"{path}:{times[path]}"] = variable
    return named


def groups_of(
    model: KerasModel, named: Mapping[str, KerasVariable], local: Sequence[str]
) -> dict[str, Group]:
    """Return the group of each weight; `local` are patterns such as "head/*" of the names that stay local.

    Raises TaskError for a pattern that matches no weight.
    """
    trained = {id(variable) for variable in model.trainable_weights}
    # Statistics are the weights that a layer itself creates as not trainable and changes in training. Frozen
    # are those that were switched off later, such as the kernel under a LoRA adapter, and those of a
    # quantised layer or one that is not trainable.
    statistics = {
        id(variable)
        for layer in model._flatten_layers()
        if layer.trainable and getattr(layer, "quantization_mode", None) is None
        for variable in layer._non_trainable_variables
    }
    groups: dict[str, Group] = {}
    for name, variable in named.items():
        kept: Group = "statistic" if id(variable) in statistics else "frozen"
        groups[name] = "trained" if id(variable) in trained else kept
    for pattern in local:
        matching = fnmatch.filter(named, pattern)
        if not matching:
            raise TaskError(
                f"KerasTask(local=...): no weight matches {pattern!r}; the model has "
                f"{', '.join(list(named)[:MAX_NAMED])}"
            )
        groups |= dict.fromkeys(matching, "local")
    return groups


def reset_recurrent_states(model: KerasModel) -> None:
    """Reset what stateful recurrent layers remember of the last minibatch."""
    for layer in _stateful_layers(model):
        layer.reset_state()


@contextmanager
def refreshing_constants(model: KerasModel) -> Iterator[None]:
    """Recompute the constants of layers such as Normalization if this block assigns other weights.

    Keras makes the constants in `finalize_state`, and a compiled step keeps those that it was compiled with:
    it is compiled again when they change, which is seldom.
    """
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "finalize_state")]
    variables = [variable for layer in layers for variable in layer.weights]
    before = copies_of(variables)
    yield
    if all(map(np.array_equal, before, copies_of(variables))):
        return
    for layer in layers:
        layer.finalize_state()
    model.train_function = model.test_function = model.predict_function = None


def copies_of(variables: Iterable[KerasVariable]) -> list[NDArray[np.generic]]:
    """Return copies of the values of variables, in their order; a bfloat16 has the dtype of ml_dtypes."""
    # On JAX, numpy warns of a variable's own __array__.
    to_numpy = import_keras().ops.convert_to_numpy
    return [np.array(to_numpy(variable.value)) for variable in variables]


def _stateful_layers(model: KerasModel) -> Iterator[KerasLayer]:
    return (
        layer
        for layer in model._flatten_layers()
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state")
    )
