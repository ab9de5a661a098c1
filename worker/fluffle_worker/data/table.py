"""The table [data] of a worker's TOML file, which overrides the data steps of its task."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from fluffle.errors import ConfigError
from fluffle.settings import with_table
from fluffle.task import Task, name_of_task
from fluffle_worker.data.settings import DataSteps


@runtime_checkable
class TaskWithSteps(Protocol):
    """A task that takes data steps, as every KerasTask does."""

    @property
    def data_steps(self) -> DataSteps | None:
        """The steps that the task was made with."""

    def with_data_steps(self, steps: DataSteps) -> Task:
        """Return the same task with other steps."""


def with_data_table(task: Task, config: Path | None) -> Task:
    """Return a task with the data steps of the table [data], where the TOML file has one.

    `config` is the setting of that name. Raises ConfigError for a wrong setting in it, and for a task that
    takes no data steps.
    """
    given = task.data_steps if isinstance(task, TaskWithSteps) else None
    steps = with_table(given or DataSteps(), config)
    if steps is None:
        return task
    if not isinstance(task, TaskWithSteps):
        raise ConfigError(
            f"the TOML file has a table [data], and the task {name_of_task(task)} is no KerasTask: take the "
            "steps in its prepare, and remove the table"
        )
    return task.with_data_steps(steps)
