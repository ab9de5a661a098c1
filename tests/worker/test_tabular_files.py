"""What the task tabular reads of CSV files that look different from each other."""

from pathlib import Path

import numpy as np
import pytest

from fluffle.data_source import DataSource, reading_from
from fluffle.errors import TaskError
from fluffle.task import Site, load_task
from fluffle_worker.tabular.task import TabularTask


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tabular(data: str) -> TabularTask:
    task = reading_from(load_task("tabular"), DataSource(data, "region", None))
    assert isinstance(task, TabularTask)
    return task


def write(name: str, rows: str) -> None:
    Path(name).write_text(f"age,region\n{rows}", encoding="utf-8")


def classes_of(data: str, beginning: TabularTask) -> list[int]:
    """The classes of the rows of a site in the federation that another task begins."""
    task = tabular(data).with_table_model(beginning.table_model())
    assert isinstance(task, TabularTask)
    rows = task.train_data(Site())
    assert isinstance(rows, tuple)
    return [int(each) for each in rows[1] if not np.isnan(each)]


def test_a_class_may_be_called_na_at_every_site_and_empty_labels_are_missing(tmp_path: Path) -> None:
    rows = "".join(f"{age},{label}\n" for age in range(100) for label in ("EU", "NA", "AS"))
    write("held-out.csv", rows)
    write("all.csv", f"{rows}7,\n")
    write("only.csv", "1,NA\n2,\n3,NA\n")

    beginning = tabular("held-out.csv")

    assert beginning.table_model().classes == ("AS", "EU", "NA")
    assert np.bincount(classes_of("all.csv", beginning)).tolist() == [100, 100, 100]
    assert classes_of("only.csv", beginning) == [2, 2]


def test_an_empty_table_is_called_empty(tmp_path: Path) -> None:
    Path("empty.csv").write_bytes(b"")

    with pytest.raises(TaskError, match=r"empty\.csv is empty: put the data there first$"):
        tabular("empty.csv").table_model()
