"""A Task from two or three functions that speak Keras: the only importer of keras and tensorflow."""

import importlib
from typing import TYPE_CHECKING

from fluffle_worker.keras_task.backend import KerasModel, import_keras
from fluffle_worker.keras_task.stacked import NotStackable, OptimizerState, RoundAtSite, StackedModel
from fluffle_worker.keras_task.task import KerasTask

if TYPE_CHECKING:
    from fluffle_worker.keras_task.normalization import SurveyNormalization

__all__ = [
    "KerasModel",
    "KerasTask",
    "NotStackable",
    "OptimizerState",
    "RoundAtSite",
    "StackedModel",
    "SurveyNormalization",
    "import_keras",
]


def __getattr__(name: str) -> object:
    """Return the one class here that cannot be made without Keras, whose import takes seconds."""
    if name == "SurveyNormalization":
        return importlib.import_module("fluffle_worker.keras_task.normalization").SurveyNormalization
    raise AttributeError(name)
