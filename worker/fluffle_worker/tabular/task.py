"""TabularTask: a KerasTask whose model is made for the columns and classes of a table."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from fluffle.data_source import DataSource
from fluffle.errors import ConfigError
from fluffle.settings import with_table
from fluffle.table_model import TableModel
from fluffle.task import Site
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tabular.network import network_of
from fluffle_worker.tabular.rows import RowSource
from fluffle_worker.tabular.settings import TabularSettings


class TabularTask(KerasTask):
    """A task that reads rows by the names of their columns.

    `source` is where they come from. The model is that of `table`; without one it is what the settings and
    the rows themselves say, which are looked through once for it.
    """

    def __init__(self, source: RowSource | None = None, table: TableModel | None = None) -> None:
        source = source or RowSource()

        @cache
        def known() -> TableModel:
            return source.table_model() if table is None else table

        # Copies of this task have the same three: they depend on nothing that is changed in a copy.
        super().__init__(
            lambda: network_of(known()),
            lambda site: source.training_rows(known(), site),
            lambda: source.held_out_rows(known()),
            data=DataSteps(),
        )
        self._source, self._table, self._known = source, table, known

    def with_source(self, source: DataSource) -> "TabularTask":
        """See `fluffle.data_source.TaskOfTables`."""
        settings = with_table(TabularSettings(), source.config) or self._source.settings
        if source.data is not None and self._source.rows is not None:
            raise ConfigError("the rows of this task come from elsewhere: leave --data out")
        return self._made(
            replace(
                self._source,
                settings=settings,
                data=source.data or self._source.data,
                label=source.label or self._source.label,
                use=source.use,
                surveyed=source.surveyed,
            ),
            self._table,
        )

    def with_table_model(self, table: TableModel) -> "TabularTask":
        """See `fluffle.data_source.TaskOfTables`."""
        self._source.require_agreement(table)
        return self._made(self._source, table)

    def with_train_data(self, train_data: Callable[[Site], object]) -> "TabularTask":
        """Return a task that gets its rows elsewhere: (x, y) with the names of the columns in x.columns.

        y are the labels as the table has them: text, or numbers.
        """
        return self._made(replace(self._source, rows=train_data), self._table)

    def with_data_steps(self, steps: DataSteps) -> "TabularTask":
        """Return a task that takes these data steps. Raises ConfigError for one that adds columns."""
        if steps.indicator:
            raise ConfigError(
                "the data step indicator adds columns, and the task tabular takes exactly those of its "
                "federation: leave indicator out of [data]"
            )
        other = self._made(self._source, self._table)
        other._data_steps = steps
        return other

    def require_rows(self) -> None:
        """See `fluffle.data_source.TaskOfTables`."""
        self._source.require_rows()

    def table_model(self) -> TableModel:
        """See `fluffle.data_source.TaskOfTables`."""
        return self._known()

    def _made(self, source: RowSource, table: TableModel | None) -> "TabularTask":
        other = TabularTask(source, table)
        other._data_steps, other._dtype_policy = self._data_steps, self._dtype_policy
        return other
