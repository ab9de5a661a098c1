"""Training in a lower precision: half the memory for activations, and faster where the hardware has it."""

from typing import Literal, Protocol, runtime_checkable

from fluffle.errors import ConfigError
from fluffle.task import Task, name_of_task

# Keras's names of the policies under which layers compute in 16 bits and keep their weights in float32.
Precision = Literal["mixed_bfloat16", "mixed_float16"]


@runtime_checkable
class TaskWithPrecision(Protocol):
    """A task whose model can compute in another precision, as that of every KerasTask can."""

    def with_dtype_policy(self, policy: str) -> Task:
        """Return the same task with a model that is built under this policy."""


def with_precision(task: Task, precision: Precision | None) -> Task:
    """Return a task that trains in this precision; None leaves it as it is.

    Raises ConfigError for a task that is no KerasTask.
    """
    if precision is None:
        return task
    if not isinstance(task, TaskWithPrecision):
        raise ConfigError(
            f"quantize_training {precision} is for KerasTasks, and the task {name_of_task(task)} is none: "
            "set the precision in its own code, and leave quantize_training out"
        )
    return task.with_dtype_policy(precision)
