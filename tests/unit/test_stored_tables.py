"""Parquet and CSV as data sets: what becomes of columns, rows and labels, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from fluffle.errors import ConfigError, TaskError
from fluffle.task import Site
from fluffle_worker.data import open_dataset

Write = Callable[[pa.Table, Path], None]


def write_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path.with_suffix(".parquet"), row_group_size=100)


def write_csv(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pc.write_csv(table, path.with_suffix(".csv"))


both_formats = pytest.mark.parametrize("write", [write_parquet, write_csv])


def a_table(rows: int, begin: int = 0) -> pa.Table:
    numbers = list(range(begin, begin + rows))
    return pa.table(
        {
            "age": pa.array([None if at % 7 == 0 else at for at in numbers], pa.int32()),
            "dose": [at / 2 for at in numbers],
            "smokes": [at % 2 == 1 for at in numbers],
            "ill": [at % 3 for at in numbers],
        }
    )


@both_formats
def test_numbers_booleans_and_nulls_become_float32_and_a_whole_label_stays_whole(
    tmp_path: Path, write: Write
) -> None:
    write(a_table(3), tmp_path / "table")

    dataset = open_dataset(tmp_path, label="ill")
    x, y = dataset.arrays()

    assert (dataset.features, dataset.label) == (("age", "dose", "smokes"), "ill")
    np.testing.assert_array_equal(x, [[np.nan, 0, 0], [1, 0.5, 1], [2, 1, 0]])
    assert (str(x.dtype), str(y.dtype), y.tolist()) == ("float32", "int64", [0, 1, 2])


@both_formats
def test_the_columns_that_are_named_come_in_their_order_and_a_target_is_float32(
    tmp_path: Path, write: Write
) -> None:
    write(a_table(3), tmp_path / "table")

    x, y = open_dataset(tmp_path, columns=["ill", "age"], label="dose").arrays()

    np.testing.assert_array_equal(x, [[0, np.nan], [1, 1], [2, 2]])
    assert (str(y.dtype), y.tolist()) == ("float32", [0, 0.5, 1])


@both_formats
def test_rows_without_a_label_are_left_out_and_texts_are_numbered_as_the_caller_says(
    tmp_path: Path, write: Write
) -> None:
    write(pa.table({"age": [1, 2, 3], "ill": pa.array(["yes", None, "no"])}), tmp_path / "table")

    dataset = open_dataset(tmp_path, label="ill", classes=["no", "yes"])
    x, y = dataset.arrays()

    assert dataset.classes == ("no", "yes")
    assert (x.tolist(), y.tolist()) == ([[1], [3]], [1, 0])


@both_formats
@pytest.mark.parametrize("files", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_each_row_belongs_to_exactly_one_site(tmp_path: Path, write: Write, files: int, count: int) -> None:
    for file in range(files):
        write(a_table(400, 400 * file), tmp_path / f"table-{file}")

    sites = [
        open_dataset(tmp_path, columns=["dose"], shard=Site(index=index, count=count)).arrays()[0]
        for index in range(count)
    ]

    every = np.sort(np.concatenate(sites).reshape(-1)) * 2
    assert every.tolist() == list(range(400 * files))
    assert max(map(len, sites)) <= 1.3 * min(map(len, sites))


@both_formats
def test_minibatches_hold_the_same_rows_in_each_pass_and_come_in_another_order_where_a_seed_says_so(
    tmp_path: Path, write: Write
) -> None:
    write(a_table(1000), tmp_path / "table")
    dataset = open_dataset(tmp_path, columns=["dose"], label="ill")
    x, y = dataset.arrays()

    plain, mixed = dataset.minibatches(64), dataset.minibatches(64, shuffle_seed=1)
    first, second = ([np.concatenate(part) for part in zip(*mixed, strict=True)] for _ in range(2))

    assert [len(part) for part, _ in plain] == [64] * 15 + [40]
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([each for each, _ in plain]), x)
    assert first[0].tolist() != second[0].tolist()
    for mixed_x, mixed_y in (first, second):
        order = np.argsort(mixed_x[:, 0])
        np.testing.assert_array_equal(mixed_x[order], x)
        np.testing.assert_array_equal(mixed_y[order], y)


def test_lists_keep_their_shape_and_stand_beside_numbers_side_by_side(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([[[1, 2], [3, 4], [5, 6]], None], pa.list_(pa.list_(pa.int16(), 2))),
            "wave": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "age": [7, 8],
        }
    )
    write_parquet(table, tmp_path / "table")

    [image] = open_dataset(tmp_path, columns=["image"]).arrays()
    [both] = open_dataset(tmp_path, columns=["wave", "age"]).arrays()

    assert image.shape == (2, 3, 2)
    assert image[0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert np.isnan(image[1]).all()
    assert both.tolist() == [[1, 2, 7], [3, 4, 8]]


def refused(folder: Path, kind: type[Exception] = TaskError, **wanted: Any) -> str:
    with pytest.raises(kind) as error:
        open_dataset(folder, **wanted).arrays()
    return str(error.value).replace(str(folder), "DATA")


@both_formats
@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"label": "died"}, "has no label column 'died': it has 'age', 'sex', 'ill'"),
        ({"columns": ["weight"]}, "has no column 'weight'"),
        ({}, "the column 'sex' of DATA/table.*holds text where numbers are expected: name the others with"),
        ({"columns": ["age"], "label": "sex"}, "the label column 'sex' of DATA/table.* holds text: name its"),
        (
            {"columns": ["age"], "label": "sex", "classes": ["f"]},
            "the label column 'sex' of DATA/table.* holds 'm', which is none of the classes 'f'",
        ),
        ({"columns": ["age"], "label": "weight"}, "has no label column 'weight'"),
    ],
)
def test_columns_that_cannot_be_used_are_named_with_their_file(
    tmp_path: Path, write: Write, wanted: dict[str, Any], said: str
) -> None:
    write(pa.table({"age": [1, 2], "sex": ["m", "f"], "ill": [0, 1]}), tmp_path / "table")

    assert re.search(said, refused(tmp_path, **wanted))


def test_a_request_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    write_parquet(a_table(3), tmp_path / "table")

    assert "not the label" in refused(tmp_path, ConfigError, columns=["ill"], label="ill")
    assert "different texts" in refused(tmp_path, ConfigError, label="ill", classes=["a", "a"])
