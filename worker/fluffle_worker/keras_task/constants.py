"""Layers that compute with constants made of their weights, such as Normalization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fluffle_worker.keras_task.backend import KerasModel
from fluffle_worker.keras_task.tensors import copies_of


@contextmanager
def refreshing_constants(model: KerasModel) -> Iterator[None]:
    """Let such layers, however deep inside the model, follow the weights that this block assigns.

    Keras makes the constants in `finalize_state`, and a compiled step keeps those that it was compiled with:
    it is compiled anew when they change, which is seldom.
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
