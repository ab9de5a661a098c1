"""A feature of Keras, as these tests know it: a tiny model that has it, and data for it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluffle.model import Group
from fluffle.plan import Plan
from fluffle_worker.keras_task import KerasModel

Floats = NDArray[np.float32]

# `make test-jax` runs the same tests with Keras on JAX.
IS_TENSORFLOW = os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow"
needs_tensorflow = pytest.mark.skipif(not IS_TENSORFLOW, reason="it is about Keras on TensorFlow")

EXAMPLES = 60
INPUTS: Floats = np.random.default_rng(0).standard_normal((EXAMPLES, 6)).astype(np.float32)
TARGETS: Floats = (INPUTS[:, :1] > 0).astype(np.float32)


def numbers() -> object:
    """Return six numbers for each example, and a target of 0 or 1."""
    return INPUTS, TARGETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One row of the table in docs/models.md.

    `groups` are patterns of names and their group; weights that no pattern matches are trained. Those that
    match `constant` do not change in training. `refused` is what Keras on another backend than TensorFlow is
    refused with; nothing when it works there.
    """

    build: Callable[[ModuleType], KerasModel]
    data: Callable[[], object] = numbers
    local: tuple[str, ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    refused: str = ""
    plan: Plan = field(default_factory=lambda: Plan(local_epochs=3, batch_size=20))


def compiled(keras: ModuleType, model: KerasModel, **options: Any) -> KerasModel:
    """Compile a model that ends in one sigmoid."""
    settings = {
        "optimizer": keras.optimizers.Adam(0.02),
        "loss": "binary_crossentropy",
        "metrics": ["accuracy"],
    }
    model.compile(**(settings | options))
    return model


def stack(
    keras: ModuleType, *layers: Any, shape: tuple[int | None, ...] = (6,), **options: Any
) -> KerasModel:
    """Return a compiled Sequential model of these layers, with one sigmoid behind them."""
    last = keras.layers.Dense(1, activation="sigmoid", name="last")
    return compiled(keras, keras.Sequential([keras.Input(shape), *layers, last]), **options)
