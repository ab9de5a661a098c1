"""Importing Keras when it is first needed: that takes seconds, and the aggregator does without."""

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

from fluffle.errors import TaskError
from fluffle.task import set_keras_environment

if TYPE_CHECKING:
    import keras

KerasLayer: TypeAlias = "keras.Layer"
KerasModel: TypeAlias = "keras.Model"
KerasVariable: TypeAlias = "keras.Variable"


def import_keras() -> ModuleType:
    """Import Keras with the backend that KERAS_BACKEND names, by default TensorFlow.

    Raises TaskError when Keras or its backend is not installed.
    """
    set_keras_environment()
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        backend = os.environ["KERAS_BACKEND"]
        remedy = (
            "install Fluffle with the extra [worker]" if backend == "tensorflow" else f"install {backend}"
        )
        raise TaskError(f"this task needs Keras on {backend}: {remedy} ({error})") from error


def inner_optimizer(model: KerasModel) -> "keras.optimizers.Optimizer":
    """Return the optimizer of a compiled model without what mixed precision wraps around it."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def uses_tensorflow() -> bool:
    """Tell whether Keras computes with TensorFlow."""
    return bool(import_keras().backend.backend() == "tensorflow")


def require_tensorflow(what: str) -> None:
    """Raise TaskError, which names `what` needs it, unless Keras computes with TensorFlow."""
    if not uses_tensorflow():
        raise TaskError(
            f"{what} works with Keras on TensorFlow only, not on {import_keras().backend.backend()}: set "
            "KERAS_BACKEND=tensorflow"
        )
