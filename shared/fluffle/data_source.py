"""Where the ready task `tabular` reads its rows: the settings `data` and `label`, and who takes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field

from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings, has_table
from fluffle.table_model import TableModel
from fluffle.task import Task, name_of_task

# The table of the TOML file that says the rest.
TABLE = "tabular"


Use = Literal["begin", "train", "evaluate"]


@dataclass(frozen=True, slots=True)
class DataSource:
    """The rows of a table: `data` is a file, a folder or a pattern, `label` the column that is told.

    `config` is the setting of that name, and `use` says what the rows are for: a federation begins with a
    model of them, a site trains on them, or they are held out to evaluate on. `surveyed` says whether a
    federation that begins will ask its sites for a survey.
    """

    data: str | None = None
    label: str | None = None
    config: Path | None = None
    use: Use = "begin"
    surveyed: bool = True


class SourceSettings(SharedSettings):
    """The settings of a part that may read a table."""

    data: str | None = Field(
        None,
        description="Rows of a table, for the task tabular: a file, a folder or a pattern, such as "
        "'hdfs://namenode:8020/site-3/*.parquet'. Workers train on them, the evaluator evaluates on them, "
        "and an aggregator reads from them once which columns and classes there are.",
    )
    label: str | None = Field(None, description="Column of these rows that the model learns to tell.")

    def source(self, use: Use) -> DataSource:
        """Return where to read, and what for."""
        return DataSource(self.data, self.label, self.config, use)


@runtime_checkable
class TaskOfTables(Protocol):
    """A task whose model is made for the columns and classes of a table, as the ready task tabular is."""

    def with_source(self, source: DataSource) -> Task:
        """Return a task that reads its rows there. Raises ConfigError for wrong settings."""

    def require_rows(self) -> None:
        """Raise TaskError when there are no rows to read; it need not read them."""

    def with_table_model(self, table: TableModel) -> Task:
        """Return a task with the model of a federation; TaskError where its settings want another one."""

    def table_model(self) -> TableModel:
        """Return which columns the model takes, and what it tells: a part of its layout.

        Unless that is known, it is what the settings and the rows say. Raises TaskError where they do not.
        """


def reading_from(task: Task, source: DataSource) -> Task:
    """Return a task that reads its rows from there.

    Raises ConfigError for settings that the task would ignore.
    """
    if isinstance(task, TaskOfTables):
        return task.with_source(source)
    given = [f"--{name}" for name in ("data", "label") if getattr(source, name) is not None]
    given += [f"the table [{TABLE}] of the TOML file"] if has_table(TABLE, source.config) else []
    if given:
        raise ConfigError(
            f"{' and '.join(given)} would have no effect: the task {name_of_task(task)} finds its data "
            "itself. Leave it out, or choose --task tabular, which reads tables"
        )
    return task
