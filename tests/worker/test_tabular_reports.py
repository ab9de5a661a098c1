"""What was reported of tables elsewhere, tried with the task tabular."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from tables import LABEL, table_of

from fluffle.checked_task import CheckedTask
from fluffle.data_source import DataSource
from fluffle.plan import Plan
from fluffle.table_model import TableModel
from fluffle.task import Site
from fluffle_worker.round import ignore_progress
from fluffle_worker.tabular.task import TabularTask


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table_in(path: str) -> TableModel:
    return TabularTask().with_source(DataSource(path, LABEL)).table_model()


def a_site(path: str, table: TableModel) -> TabularTask:
    return TabularTask().with_source(DataSource(path, LABEL, use="train")).with_table_model(table)


def a_judge(path: str, table: TableModel) -> TabularTask:
    return TabularTask().with_source(DataSource(path, LABEL, use="evaluate")).with_table_model(table)


def labels_of(task: TabularTask) -> list[float]:
    rows = task.train_data(Site())
    assert isinstance(rows, tuple)
    labels: NDArray[np.generic] = rows[1]
    return [float(each) for each in labels]


def trained(task: TabularTask) -> dict[str, NDArray[np.generic]]:
    """The weights after a round, as a worker sends them."""
    checked = CheckedTask(task)
    model = checked.model(0)
    checked.prepare(Site())
    plan = Plan(local_epochs=2)
    return {**checked.train(model.weights, plan, seed=0, progress=ignore_progress).weights}


def test_a_model_gives_the_same_predictions_when_columns_are_reordered() -> None:
    """scikit-learn/scikit-learn#7242, lightgbm-org/LightGBM#4102: they were wrong, and nothing said so."""
    frame = table_of("wines")
    frame.to_parquet("trained.parquet", index=False)
    frame[frame.columns[::-1]].to_parquet("reversed.parquet", index=False)
    table = table_in("trained.parquet")
    weights = trained(a_site("trained.parquet", table))

    found, again = (
        a_judge(path, table).evaluate(weights) for path in ("trained.parquet", "reversed.parquet")
    )

    assert found == again


def test_files_with_and_without_an_index_of_pandas_have_the_same_columns() -> None:
    """pandas-dev/pandas#51664: a file has the column __index_level_0__ or not, as its rows were chosen."""
    frame = table_of("wines")
    frame.to_parquet("whole.parquet")
    frame[frame["hue"] > 1].to_parquet("chosen.parquet")
    assert "__index_level_0__" in pq.read_schema("chosen.parquet").names

    assert table_in("chosen.parquet").columns == table_in("whole.parquet").columns


def test_sites_without_a_class_in_common_train_the_same_tensors() -> None:
    """FederatedAI/FATE#1376, pytorch-tabular/pytorch_tabular#423: each site's model had its own shape."""
    frame = table_of("wines")
    frame.to_parquet("held-out.parquet", index=False)
    frame[frame[LABEL] == "class_2"].to_parquet("one.parquet", index=False)
    frame[frame[LABEL] != "class_2"].to_parquet("others.parquet", index=False)
    table = table_in("held-out.parquet")

    one, others = (trained(a_site(path, table)) for path in ("one.parquet", "others.parquet"))

    assert {name: each.shape for name, each in one.items()} == {
        name: each.shape for name, each in others.items()
    }
    assert set(labels_of(a_site("one.parquet", table))) == {2}
    assert set(labels_of(a_site("others.parquet", table))) == {0, 1}


def test_the_first_column_of_a_csv_file_of_excel_is_found() -> None:
    """apache/arrow#4382, docling-project/docling#4097: a mark of the encoding became a part of its name."""
    frame = table_of("wines")
    frame.to_csv("excel.csv", index=False, encoding="utf-8-sig")
    frame.to_csv("plain.csv", index=False)

    assert table_in("excel.csv") == table_in("plain.csv")
    assert table_in("excel.csv").columns[0] == frame.columns[0]


def test_labels_that_are_missing_at_a_site_are_no_class_of_their_own() -> None:
    """abhishekkrthakur/mlframework#7, NVIDIA/cuml#4587: NaN and None were unseen labels, or a class more."""
    pd.DataFrame({"age": range(6), LABEL: [0, 1, 2, 0, 1, 2]}).to_parquet("whole.parquet")
    # Pandas writes whole numbers with gaps as floats, Excel as text.
    gaps = pd.DataFrame({"age": range(4), LABEL: [0, None, 2, np.nan]})
    gaps.to_parquet("floats.parquet")
    Path("text.csv").write_text(f"age,{LABEL}\n1,0\n2,\n3,2\n4,\n")
    pd.DataFrame({"age": range(3), LABEL: ["0", None, "2"]}).to_parquet("text.parquet")
    table = table_in("whole.parquet")

    assert table.classes == ("0", "1", "2")
    for path in ("floats.parquet", "text.csv", "text.parquet"):
        site = a_site(path, table)
        assert [each for each in labels_of(site) if not np.isnan(each)] == [0, 2]
        assert CheckedTask(site).prepare(Site()) == 2
