"""A site's rows for the task tabular, which finds columns by their names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluffle.data_source import DataSource
from fluffle.errors import TaskError
from fluffle.task import Task
from fluffle_worker.data.named import NamedTable
from fluffle_worker.tabular.task import TabularTask


def with_named_rows(
    task: TabularTask, features: Sequence[str], label: str, parts: tuple[object, Any]
) -> Task:
    """Return the task with these rows of a site. Raises TaskError where they are no table of numbers."""
    x, y = parts
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        raise TaskError(
            "the task tabular takes columns of numbers, and some of these hold arrays: name the others in "
            "features"
        )
    rows = NamedTable(tuple(features), x), y
    return task.with_source(DataSource(label=label, use="train")).with_train_data(lambda _site: rows)
