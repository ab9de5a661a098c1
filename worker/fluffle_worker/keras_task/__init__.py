"""A Task from two or three functions that speak Keras: the only importer of keras and tensorflow."""

from fluffle_worker.keras_task.backend import KerasModel, import_keras
from fluffle_worker.keras_task.stacked import NotStackable, OptimizerState, RoundAtSite, StackedModel
from fluffle_worker.keras_task.task import KerasTask

__all__ = [
    "KerasModel",
    "KerasTask",
    "NotStackable",
    "OptimizerState",
    "RoundAtSite",
    "StackedModel",
    "import_keras",
]
