"""Numbers too large for float32, and words for missing values: nothing of them changes without a word."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fluffle.errors import TaskError
from fluffle_worker.data import open_dataset


def refused(folder: Path, **wanted: Any) -> str:
    with pytest.raises(TaskError) as error:
        open_dataset(folder, **wanted).arrays()
    return str(error.value).replace(str(folder), "DATA")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0, 1e300]),
        pa.array([None, -1e300]),
        pa.array([None, "1" + "0" * 50]).cast(pa.decimal256(60, 0)),
        pa.array([[1.0, 1e300], [1.0, 2.0]]),
        pa.array([[1.0, 1e300], None], pa.list_(pa.float64(), 2)),
        pa.array([1e300, 1.0]).dictionary_encode(),
    ],
)
def test_a_number_of_parquet_that_is_too_large_for_float32_is_shown_with_its_column(
    tmp_path: Path, column: pa.Array
) -> None:
    pq.write_table(pa.table({"age": [1, 2], "dose": column}), tmp_path / "a.parquet")

    said = refused(tmp_path)

    assert said.startswith("the column 'dose' of DATA/a.parquet holds ")
    assert "e+" in said
    assert "models train on float32, up to 3.4e38: leave the value empty if it is missing" in said


@pytest.mark.parametrize("value", ["1e300", "-1e39", "1e999"])
@pytest.mark.parametrize("label", [None, "dose", "age"])
def test_a_number_of_csv_that_is_too_large_for_float32_is_shown_with_its_column(
    tmp_path: Path, value: str, label: str | None
) -> None:
    (tmp_path / "a.csv").write_text(f"age,dose\n1.5,inf\n2.5,{value}\n3.5,\n")

    said = refused(tmp_path, label=label)

    assert said.startswith(f"the column 'dose' of DATA/a.csv holds {value}, and models train on float32")


def test_an_array_of_npz_that_holds_too_large_a_number_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array([1.0, 1e300]))

    assert refused(tmp_path).startswith("the array 'y' of DATA/a.npz holds 1e+300")
    np.savez(tmp_path / "a.npz", x=np.array([[1.0], [-1e300]]), y=np.array([1, 2]))
    assert refused(tmp_path).startswith("the array 'x' of DATA/a.npz holds -1e+300")


def test_infinity_that_is_in_a_file_stays_infinity(tmp_path: Path) -> None:
    for end in ("csv", "parquet", "npz"):
        (tmp_path / end).mkdir()
    (tmp_path / "csv" / "a.csv").write_text("dose\ninf\n-Infinity\n-inf\n1\n")
    dose = [np.inf, -np.inf, -np.inf, 1.0]
    pq.write_table(pa.table({"dose": dose}), tmp_path / "parquet" / "a.parquet")
    np.savez(tmp_path / "npz" / "a.npz", x=np.array(dose))

    for end in ("csv", "parquet", "npz"):
        [x] = open_dataset(tmp_path / end).arrays()
        assert x.reshape(-1).tolist() == dose


def test_floats_and_decimals_beside_nulls_keep_their_values(tmp_path: Path) -> None:
    table = pa.table(
        {
            "half": pa.array([np.float16(0.5), None], pa.float16()),
            "single": pa.array([1.25, None], pa.float32()),
            "double": [3.5, None],
            "whole": [2**40, None],
            "yes": [True, None],
            "price": pa.array(["1.25", None]).cast(pa.decimal128(5, 2)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")

    [x] = open_dataset(tmp_path).arrays()

    np.testing.assert_array_equal(x, [[0.5, 1.25, 3.5, 2**40, 1, 1.25], [np.nan] * 6])


@pytest.mark.parametrize("word", ["NA", "nan", "null", "NULL", "N/A", "None"])
def test_a_class_may_be_called_by_a_word_for_missing_values(tmp_path: Path, word: str) -> None:
    """Of Namibia, and of North America, nothing was left (kuzudb/kuzu#1323)."""
    rows = "".join(f"{age},{label}\n" for age in range(100) for label in ("EU", word, "AS", "", '""'))
    (tmp_path / "a.csv").write_text(f"age,region\n{rows}")

    x, y = open_dataset(tmp_path, label="region", classes=["EU", word, "AS"]).arrays()

    assert np.bincount(y).tolist() == [100, 100, 100]
    assert len(x) == 300


def test_a_site_whose_only_class_looks_like_missing_values_has_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,region\n1,NA\n2,NA\n3,\n")

    x, y = open_dataset(tmp_path, label="region", classes=["EU", "NA"]).arrays()

    assert (x.tolist(), y.tolist()) == ([[1], [2]], [1, 1])


def test_words_for_missing_values_are_nan_in_columns_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,dose,ill\n1,NA,1\nnull,2.5,NA\n,nan,0\n")

    x, y = open_dataset(tmp_path, label="ill").arrays()

    np.testing.assert_array_equal(x, [[1, np.nan], [np.nan, np.nan]])
    assert y.tolist() == [1, 0]
