"""Sites that share files get rows of one form, whichever of the files they read themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from fluffle.errors import TaskError
from fluffle.task import Site
from fluffle_worker.data import open_dataset
from fluffle_worker.data.stored.dataset import columns_in

Write = Callable[[dict[str, Any], Path], None]


def write_parquet(columns: dict[str, Any], path: Path) -> None:
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))


def write_csv(columns: dict[str, Any], path: Path) -> None:
    pc.write_csv(pa.table(columns), path.with_suffix(".csv"))


def write_npz(columns: dict[str, Any], path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=columns["x"], y=columns["y"])


both_formats = pytest.mark.parametrize("write", [write_parquet, write_csv])


def sites_of(folder: Path, count: int = 2, **wanted: Any) -> list[tuple[np.ndarray[Any, Any], ...]]:
    return [
        open_dataset(folder, shard=Site(index=index, count=count), **wanted).arrays()
        for index in range(count)
    ]


@both_formats
def test_columns_are_in_the_order_of_the_first_file_at_every_site(tmp_path: Path, write: Write) -> None:
    write({"age": [40], "bp": [120], "label": [0]}, tmp_path / "1")
    write({"bp": [120], "age": [40], "label": [0]}, tmp_path / "2")

    sites = sites_of(tmp_path, label="label")

    assert [x.tolist() for x, _ in sites] == [[[40, 120]], [[40, 120]]]


@both_formats
def test_labels_have_one_dtype_at_all_sites_where_one_file_alone_has_fractions(
    tmp_path: Path, write: Write
) -> None:
    write({"age": [40], "label": [1]}, tmp_path / "1")
    write({"age": [41], "label": [0.5]}, tmp_path / "2")
    write({"age": [42], "label": [2]}, tmp_path / "3")

    sites = sites_of(tmp_path, 3, label="label")

    assert {str(y.dtype) for _, y in sites} == {"float32"}
    assert sorted(float(y[0]) for _, y in sites) == [0.5, 1, 2]


def test_arrays_of_npz_files_have_the_dtype_and_the_shapes_of_all_files_at_every_site(tmp_path: Path) -> None:
    write_npz({"x": np.ones((2, 3)), "y": [1, 2]}, tmp_path / "1")
    write_npz({"x": np.ones((2, 3)), "y": [0.5, 2]}, tmp_path / "2")

    assert {str(y.dtype) for _, y in sites_of(tmp_path)} == {"float32"}
    write_npz({"x": np.ones((2, 4)), "y": [0.5, 2]}, tmp_path / "2")
    with pytest.raises(TaskError, match="write all files in the same way"):
        sites_of(tmp_path)


def test_an_npz_file_without_rows_agrees_with_all_others(tmp_path: Path) -> None:
    write_npz({"x": np.array([]), "y": np.array([])}, tmp_path / "1")
    write_npz({"x": np.ones((2, 3)), "y": [1, 2]}, tmp_path / "2")

    x, y = open_dataset(tmp_path).arrays()

    assert (x.shape, str(y.dtype), y.tolist()) == ((2, 3), "int64", [1, 2])


def test_lists_have_the_length_that_the_first_file_tells_at_every_site(tmp_path: Path) -> None:
    write_parquet({"wave": [[1.0, 2.0]]}, tmp_path / "1")
    write_parquet({"wave": [[1.0]]}, tmp_path / "2")

    with pytest.raises(TaskError, match=r"2\.parquet holds lists of 2 and of 1 values"):
        sites_of(tmp_path)


class Labels(NamedTuple):
    """Labels as a file has them, the classes that they are numbered by, and what `y` must be."""

    labels: list[Any]
    classes: tuple[Any, ...]
    found: np.ndarray[Any, Any]


@both_formats
@pytest.mark.parametrize("without_rows", ["1", "3"])
@pytest.mark.parametrize(
    "case",
    [
        Labels([True, False], (), np.array([1, 0])),
        Labels([3, 4], (), np.array([3, 4])),
        Labels([0.5, 4], (), np.array([0.5, 4], np.float32)),
        Labels(["yes", "no"], ("no", "yes"), np.array([1, 0])),
        Labels([7, 8], (8, 7), np.array([1, 0])),
    ],
)
def test_a_file_without_rows_agrees_with_all_others(
    tmp_path: Path, write: Write, without_rows: str, case: Labels
) -> None:
    """Its columns have no type that counts: Spark and pandas write such files beside those with rows."""
    write({"age": [40, 41], "label": case.labels}, tmp_path / "2")
    write({"age": pa.nulls(0), "label": pa.nulls(0)}, tmp_path / without_rows)

    _, y = open_dataset(tmp_path, label="label", classes=case.classes).arrays()

    assert (y.dtype, y.tolist()) == (case.found.dtype, case.found.tolist())
    assert {name: column.is_null for name, column in columns_in(tmp_path).items()} == {
        "age": False,
        "label": False,
    }


@both_formats
def test_a_file_whose_labels_are_all_missing_agrees_with_all_others(tmp_path: Path, write: Write) -> None:
    write({"age": [40], "label": pa.nulls(1)}, tmp_path / "1")
    write({"age": [41], "label": ["yes"]}, tmp_path / "2")

    x, y = open_dataset(tmp_path, label="label", classes=["no", "yes"]).arrays()

    assert (x.tolist(), y.tolist()) == ([[41]], [1])


def test_a_column_of_lists_that_one_file_lacks_is_missing_there(tmp_path: Path) -> None:
    write_parquet({"wave": [[1.0, 2.0]], "age": [1]}, tmp_path / "1")
    write_parquet({"wave": pa.nulls(1), "age": [2]}, tmp_path / "2")

    [x] = open_dataset(tmp_path).arrays()

    np.testing.assert_array_equal(x, [[1, 2, 1], [np.nan, np.nan, 2]])
