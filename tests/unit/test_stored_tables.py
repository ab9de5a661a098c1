"""Parquet and CSV as data sets: what becomes of columns, rows and labels, and what is refused."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from fluffle.errors import ConfigError, StorageError, TaskError
from fluffle.task import Site
from fluffle_worker.data import open_dataset
from fluffle_worker.data.stored import csv_files, dataset
from harness.federation import wait_until

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

    table = open_dataset(tmp_path, label="ill")
    x, y = table.arrays()

    assert (table.features, table.label) == (("age", "dose", "smokes"), "ill")
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

    table = open_dataset(tmp_path, label="ill", classes=["no", "yes"])
    x, y = table.arrays()

    assert table.classes == ("no", "yes")
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
    table = open_dataset(tmp_path, columns=["dose"], label="ill")
    x, y = table.arrays()

    plain, mixed = table.minibatches(64), table.minibatches(64, shuffle_seed=1)
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


def refused(
    folder: Path, kind: type[Exception] | tuple[type[Exception], ...] = TaskError, **wanted: Any
) -> str:
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
    assert "classes= numbers the values of a label" in refused(tmp_path, ConfigError, classes=["a", "b"])
    assert "must be a list" in refused(tmp_path, ConfigError, columns="age")
    assert "image_size= scales images" in refused(tmp_path, ConfigError, image_size=(2, 2))
    assert "a height and a width" in refused(tmp_path, ConfigError, image_size=(2, 0))
    assert "different texts" in refused(tmp_path, ConfigError, label="ill", classes=["a", "a"])


def test_columns_of_whole_numbers_may_have_fractions_later_and_labels_may_not(tmp_path: Path) -> None:
    """Types are guessed from the first rows (apache/arrow#10132, airbytehq/airbyte#29986)."""
    many = "".join(f"{at},{at % 2}\n" for at in range(200_000))
    (tmp_path / "table.csv").write_text(f"age,ill\n{many}42.5,1\n")

    x, _ = open_dataset(tmp_path, label="ill").arrays()

    assert x[-1, 0] == 42.5
    said = refused(tmp_path, label="age")
    assert said.startswith(
        "the column 'age' of DATA/table.csv holds '42.5', and whole numbers before: number"
    )


def test_text_after_many_rows_of_numbers_is_shown_with_its_column(tmp_path: Path) -> None:
    many = "1,2\n" * 300_000
    (tmp_path / "table.csv").write_text(f"age,ill\n{many}unknown,3\n")

    said = refused(tmp_path, label="ill")

    assert "the column 'age' of DATA/table.csv holds text such as 'unknown' where numbers are" in said
    assert "leave the cell empty where a value is missing" in said


def test_rows_that_no_list_has_a_value_in_are_nan_wherever_they_lie(tmp_path: Path) -> None:
    """Lists of a fixed length whose rows are all null, or are a part of a file, were read wrongly.

    apache/arrow#35359, apache/arrow#14000.
    """
    waves = [None] * 100 + [[float(at), 0.5] for at in range(200)] + [None]
    table = pa.table({"wave": pa.array(waves, pa.list_(pa.float32(), 2)), "ill": [1] * 301})
    write_parquet(table, tmp_path / "table")

    sites = [
        open_dataset(tmp_path, label="ill", shard=Site(index=at, count=7)).arrays()[0] for at in range(7)
    ]

    x = np.concatenate(sites)
    assert np.isnan(x[:100]).all()
    assert np.isnan(x[300]).all()
    assert x[100:300].tolist() == waves[100:300]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([[1.0], [1.0, 2.0]]), "holds lists of 1 and of 2 values: all must be of one length"),
        (pa.array([["a"], ["b"]]), "holds text where numbers are expected"),
        (pa.array([{"a": 1}, {"a": 2}]), "holds struct<a: int64> where numbers are expected"),
        (pa.array([0, 1], pa.timestamp("us")), "holds timestamp[us] where numbers are expected"),
        (pa.array([None, None], pa.list_(pa.float32())), "begins with rows without any list"),
        (pa.array(["a", "b"]).dictionary_encode(), "holds text where numbers are expected"),
    ],
)
def test_columns_of_other_types_are_named(tmp_path: Path, column: pa.Array, said: str) -> None:
    write_parquet(pa.table({"wave": column, "ill": [0, 1]}), tmp_path / "table")

    assert f"the column 'wave' of DATA/table.parquet {said}" in refused(tmp_path, label="ill")


def test_decimals_categories_of_numbers_and_columns_of_nulls_are_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "price": pa.array([1.25, None]).cast(pa.decimal128(5, 2)),
            "ward": pa.array([7, 8]).dictionary_encode(),
            "unknown": pa.nulls(2),
            "half": pa.array([0.5, 1.5]).cast(pa.float16()),
            "endless": pa.array([np.inf, 1.0]),
        }
    )
    write_parquet(table, tmp_path / "table")

    [x] = open_dataset(tmp_path).arrays()

    np.testing.assert_array_equal(x, [[1.25, 7, np.nan, 0.5, np.inf], [np.nan, 8, np.nan, 1.5, 1]])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"no Parquet at all", "DATA/a.parquet is no readable Parquet file: write it again"),
        ("a.parquet", b"", "DATA/a.parquet is no readable Parquet file: write it again"),
        ("a.csv", b"", "DATA is empty: put the data there first"),
        ("a.csv", b"age,ill\n", "DATA has no row with a value in the label column 'ill'"),
        ("a.csv", b"age,ill\n1,\n", "DATA has no row with a value in the label column 'ill'"),
        (
            "a.csv",
            b"age;ill\n1;2\n",
            "the columns of DATA/a.csv are separated by ';': write it again with com",
        ),
        ("a.csv", b"age,ill\n1,2,3\n", "DATA/a.csv is no readable CSV file with the columns' names in its"),
        ("a.csv", b"age,age\n1,2\n", "DATA/a.csv has more than one column 'age'"),
        ("a.csv", b"ill\n1\n", "DATA/a.csv has no column beside the label 'ill'"),
        ("a.csv.gz", b"age,ill\n1,2\n", "DATA/a.csv.gz is no readable gzip file: write it again"),
        ("a.txt", b"1", "DATA/a.txt is of no known format: the name of a file must end with .parquet, .csv"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)

    assert refused(tmp_path, label="ill").startswith(said)


def test_a_damaged_row_group_is_an_error_of_its_file(tmp_path: Path) -> None:
    write_parquet(a_table(1000), tmp_path / "table")
    path = tmp_path / "table.parquet"
    content = bytearray(path.read_bytes())
    content[3000:3500] = bytes(500)
    path.write_bytes(content)

    assert refused(tmp_path, (TaskError, StorageError), label="ill").count("DATA/table.parquet") == 1


def test_a_value_may_hold_a_line_break_and_a_quotation_mark_may_stand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f'{at},"note\n{at}, of\n""three"" lines",{at % 2}\n' for at in range(2000))
    (tmp_path / "quoted.csv").write_text(f"age,note,ill\n{rows}")
    (tmp_path / "alone.csv").write_text("age,note,ill\n" + '1,5" tube,0\n' * 2000)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(csv_files, "LONGEST_VALUE_BYTES", 5000)

    quoted, y = open_dataset(tmp_path / "quoted.csv", columns=["age"], label="ill").arrays()
    alone, _ = open_dataset(tmp_path / "alone.csv", columns=["age"], label="ill").arrays()

    assert quoted[:, 0].tolist() == list(range(2000))
    assert y.tolist() == [at % 2 for at in range(2000)]
    assert len(alone) == 2000


def test_arrays_that_do_not_fit_into_memory_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(a_table(1000), tmp_path / "table")
    monkeypatch.setattr(dataset, "available_bytes", lambda: 1000)

    said = refused(tmp_path, label="ill")

    assert (
        "DATA takes 0.0 GB as arrays, and 0.0 GB of memory are free: read it minibatch by minibatch" in said
    )


def test_minibatches_that_are_not_read_to_their_end_close_their_file(tmp_path: Path) -> None:
    for file in range(3):
        write_parquet(a_table(1000), tmp_path / f"table-{file}")
    minibatches = open_dataset(tmp_path, label="ill").minibatches(10)

    for _ in range(5):
        begun = iter(minibatches)
        next(begun)
        del begun

    wait_until(lambda: not reading(), "the threads that read ahead", deadline_s=10)


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fluffle-")]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_minibatch_has_at_least_one_row(tmp_path: Path, batch_size: int) -> None:
    write_parquet(a_table(3), tmp_path / "table")

    with pytest.raises(
        ConfigError, match=f"batch_size must be a whole number and at least 1, not {batch_size}"
    ):
        open_dataset(tmp_path, label="ill").minibatches(batch_size)
