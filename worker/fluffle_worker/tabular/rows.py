"""Where the rows of a table come from, and what they must have in common with the federation's model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np

from fluffle.data_source import Use
from fluffle.errors import NoHeldOutData, TaskError
from fluffle.logs import get_logger
from fluffle.table_model import TableModel, named
from fluffle.task import Site
from fluffle_worker.data.named import NamedTable
from fluffle_worker.tabular.labels import Values, classes_of_rows, targets_of_rows
from fluffle_worker.tabular.looking import look_at
from fluffle_worker.tabular.reading import columns_of, read_rows, require_label, require_numbers
from fluffle_worker.tabular.settings import TabularSettings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RowSource:
    """The rows of one process: in files, or what the function `rows` returns for a site.

    `use` is what they are for, and `surveyed` whether a federation that begins will have a survey.
    """

    settings: TabularSettings = field(default_factory=TabularSettings)
    data: str | None = None
    label: str | None = None
    use: Use = "begin"
    surveyed: bool = True
    rows: Callable[[Site], object] | None = None

    def table_model(self) -> TableModel:
        """Return the model that the settings and the rows ask for. Raises TaskError where they do not."""
        begins = self.use == "begin"
        return look_at(self.data, self.label, self.settings, begins=begins, surveyed=self.surveyed)

    def require_agreement(self, table: TableModel) -> None:
        """Raise TaskError for settings that say something else than the model of the federation."""
        given = self.settings.model_dump(
            include=self.settings.model_fields_set, exclude={"target", "leave_out"}
        )
        if "columns" in given:
            # In which order a site names them makes no difference.
            given["columns"] = sorted(given["columns"])
        has = {**dict(zip(FIELDS, table.as_list(), strict=True)), "columns": sorted(table.columns)}
        wrong = [name for name, value in given.items() if value is not None and _plain(value) != has[name]]
        if wrong:
            raise TaskError(
                f"{wrong[0]} in [tabular] is {given[wrong[0]]!r}, and the federation's model has "
                f"{has[wrong[0]]!r}: leave it out here, since the aggregator decides it"
            )
        if refused := [name for name in self.settings.leave_out if name in table.columns]:
            raise TaskError(
                f"leave_out in [tabular] names the column {refused[0]!r}, which the federation's model takes"
            )
        if self.label is not None and self.label != table.label:
            raise TaskError(
                f"--label is {self.label!r}, and the federation's model tells {table.label!r}: correct it, "
                "or rename the column"
            )
        has_classes = table.classes is not None
        if self.settings.target != "auto" and has_classes != (self.settings.target == "classes"):
            raise TaskError(
                f'target in [tabular] is "{self.settings.target}", and the federation\'s model tells '
                f"{table.outputs}"
            )

    def require_rows(self) -> None:
        """Raise TaskError when there are no rows, or no file of them."""
        if self.rows is None:
            columns_of(self._where())

    def training_rows(self, table: TableModel, site: Site) -> tuple[NamedTable, Values]:
        """Return the rows of this site: the columns that the model takes, and classes or targets.

        Raises TaskError, which names the column or the label, for rows that the model cannot take.
        """
        if self.rows is not None:
            return _of_parts(self.rows(site), table)
        return self._read(table)

    def held_out_rows(self, table: TableModel) -> tuple[NamedTable, Values]:
        """Return the rows to evaluate on. Raises NoHeldOutData where there are none."""
        if self.use != "evaluate":
            raise NoHeldOutData("these rows are trained on: start an evaluator with --data for others")
        return self._read(table)

    def _read(self, table: TableModel) -> tuple[NamedTable, Values]:
        where = self._where()
        kinds = columns_of(where)
        known = list(kinds)
        require_columns(table, known, where)
        require_numbers(kinds, table.columns, where)
        require_label(kinds, table.label, where)
        left = [name for name in known if name not in table.columns and name != table.label]
        if left:
            log.info("columns are left out, since the model does not take them", columns=named(left))
        x, labels = read_rows(where, table.columns, table.label, partial(of_labels, table))
        _say_which_are_lacking(table, labels)
        is_whole = table.classes is not None and bool(np.isfinite(labels).all())
        return NamedTable(table.columns, x), labels.astype(np.int64) if is_whole else labels

    def _where(self) -> str:
        if self.data is None:
            raise TaskError(
                "the task tabular reads rows from files: give --data FILE, FOLDER or PATTERN, such as "
                "--data 'hdfs://namenode:8020/site-3/*.parquet'"
            )
        return self.data


FIELDS = ("columns", "label", "classes", "hidden", "surveyed", "dropout", "center", "scale")


def require_columns(table: TableModel, known: list[str], where: str) -> None:
    """Raise TaskError unless all columns of a model and its label are among the known ones."""
    if table.label not in known:
        raise TaskError(
            f"{where} has no column {table.label!r}, the label of the federation's model"
            f"{_instead(table.label, known)}"
        )
    missing = [name for name in table.columns if name not in known]
    if missing:
        others = [name for name in known if name not in table.columns and name != table.label]
        raise TaskError(
            f"{where} lacks {named(missing)} of the {len(table.columns)} columns that the federation's model "
            f"takes{_instead(missing[0], others)}"
        )


def of_labels(table: TableModel, labels: Values) -> Values:
    """Return the classes or the targets of rows as the model is trained on them."""
    if table.classes is None:
        return targets_of_rows(table.label, labels)
    return classes_of_rows(table.label, labels, table.classes)


def _say_which_are_lacking(table: TableModel, labels: Values) -> None:
    lacking = [name for at, name in enumerate(table.classes or ()) if not (labels == at).any()]
    if lacking:
        log.info("no row here has one of these classes", classes=named(lacking))


def _of_parts(parts: object, table: TableModel) -> tuple[NamedTable, Values]:
    """Return rows that come from elsewhere with the model's columns, in its order."""
    if not isinstance(parts, tuple) or len(parts) != 2 or not hasattr(parts[0], "columns"):
        raise TaskError(
            "the task tabular needs rows as (x, y) with the names of the columns in x.columns, such as a "
            f"data frame or a NamedTable, not {type(parts).__name__}"
        )
    x, y = parts
    names = list(map(str, x.columns))
    require_columns(table, [*names, table.label], "the data of this site")
    if isinstance(x, NamedTable):
        order = [names.index(name) for name in table.columns]
        values = x.values if order == list(range(x.values.shape[1])) else x.values[:, order]
    else:
        values = np.stack([_column(name, x[name]) for name in table.columns], axis=1)
    return NamedTable(table.columns, values), of_labels(table, np.asarray(y))


def _column(name: str, column: Any) -> Values:
    try:
        return np.asarray(column, np.float32)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"the column {name!r} holds {getattr(column, 'dtype', 'text')}: numbers are expected"
        ) from error


def _instead(name: str, others: list[str]) -> str:
    close = get_close_matches(name, others, n=1, cutoff=0.5)
    meant = f" (is it {close[0]!r} there?)" if close else ""
    found = f": it has {named(others)}" if others else ": it has no others"
    return f"{meant}{found}; rename or add it there"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
