"""Which weights of a Keras model are trained, which are statistics, and which are frozen.

Keras knows two kinds of weights, trainable or not. A weight that is not trainable may be a statistic, such as
the moving variance of a BatchNormalization, or frozen, such as the kernel under a LoRA adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.model import Group
from fluffle_worker.keras_task.backend import KerasModel, import_keras

if TYPE_CHECKING:
    import keras


MOST_NAMED = 30


def named_weights(model: KerasModel) -> dict[str, keras.Variable]:
    """Name each weight by its path, without the model's own name, which Keras numbers.

    The state of seed generators, and what a stateful recurrent layer remembers of the last minibatch, is no
    weight.
    """
    remembered = {id(variable) for layer in _stateful_layers(model) for variable in _switched_off(layer)}
    named: dict[str, keras.Variable] = {}
    times: Counter[str] = Counter()
    for variable in model.weights:
        if id(variable) in remembered:
            continue
        path = variable.path.removeprefix(f"{model.name}/")
        times[path] += 1
        named[path if times[path] == 1 else f"{path}:{times[path]}"] = variable
    return named


def groups_of(
    model: KerasModel, named: Mapping[str, keras.Variable], local: Sequence[str]
) -> dict[str, Group]:
    """Return the group of each weight; `local` are patterns such as "head/*" of the names that stay local.

    Raises TaskError for a pattern that matches no weight.
    """
    trained = {id(variable) for variable in model.trainable_weights}
    statistics = {id(variable) for layer in model._flatten_layers() for variable in _statistics_of(layer)}
    groups: dict[str, Group] = {}
    for name, variable in named.items():
        if any(fnmatchcase(name, pattern) for pattern in local):
            groups[name] = "local"
        elif id(variable) in trained:
            groups[name] = "trained"
        else:
            groups[name] = "statistic" if id(variable) in statistics else "frozen"
    for pattern in local:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise TaskError(
                f"KerasTask(local=...): no weight matches {pattern!r}; the model has "
                f"{', '.join(list(named)[:MOST_NAMED])}"
            )
    return groups


def forget_the_last_minibatch(model: KerasModel) -> None:
    """Reset what stateful recurrent layers remember."""
    for layer in _stateful_layers(model):
        layer.reset_state()


def _stateful_layers(model: KerasModel) -> Iterator[keras.Layer]:
    return (
        layer
        for layer in model._flatten_layers()
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state")
    )


def _statistics_of(layer: keras.Layer) -> Iterator[keras.Variable]:
    """Yield the weights that a layer was made with as not trainable, and that it may change while it trains.

    A weight that was switched off later, such as the kernel under a LoRA adapter, is frozen. So are the
    weights of a quantised layer, and of a layer that is not trainable.
    """
    if layer.trainable and getattr(layer, "quantization_mode", None) is None:
        yield from _switched_off(layer)


def _switched_off(layer: keras.Layer) -> list[keras.Variable]:
    """Return the weights that a layer itself, not one inside it, was made with as not trainable."""
    return list(layer._non_trainable_variables)


def copies_of(variables: Iterable[keras.Variable]) -> list[NDArray[np.generic]]:
    """Return copies of the values of variables, in their order; a bfloat16 has the dtype of ml_dtypes."""
    # With JAX numpy warns of what a variable itself gives.
    to_numpy = import_keras().ops.convert_to_numpy
    return [np.array(to_numpy(variable.value)) for variable in variables]
