"""Requests to `open_dataset` that make no sense, and files that it cannot read: one sentence about each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.errors import ConfigError, TaskError
from fluffle_worker.data import open_dataset
from fluffle_worker.data.stored.dataset import columns_in


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("age,ill\n40,1\n41,0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"columns": "age"}, "columns= must be a list, since its order counts, not 'age'"),
        ({"columns": {"age"}}, "columns= must be a list, since its order counts, not {'age'}"),
        ({"columns": [1]}, "columns= must be a list of names, not [1]"),
        ({"classes": {"a"}}, "classes= must be a list, since its order counts, not {'a'}"),
        ({"classes": [["a"]]}, "classes= must name different texts or different whole numbers"),
        ({"classes": [1, "a"]}, "classes= must name different texts or different whole numbers"),
        ({"classes": [0.5, 1.5]}, "classes= must name different texts or different whole numbers"),
        ({"label": ["ill"]}, "label= must be the name of one column, not ['ill']"),
        ({"image_size": 16}, "image_size= must be a height and a width in pixels, such as (64, 64), not 16"),
        ({"image_size": "16"}, "not '16'"),
        ({"image_size": (16, 2.5)}, "not (16, 2.5)"),
        ({"shard": 1}, "shard= must be a Site, not 1"),
        ({"cache": "/tmp"}, "cache= must be a Cache, not '/tmp'"),
    ],
)
def test_an_argument_of_another_type_is_a_config_error(
    table: Path, wanted: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        open_dataset(table, **{"label": "ill", **wanted})

    assert said in str(error.value)


def int_of_numpy(number: int) -> Any:
    return np.int64(number)


def test_numbers_of_numpy_are_taken_as_numbers(table: Path) -> None:
    zero, one, two = map(int_of_numpy, range(3))
    data = open_dataset(table, label="ill", classes=[one, zero])

    [(x, y)] = data.minibatches(two, shuffle_seed=one)

    assert sorted(zip(x[:, 0].tolist(), y.tolist(), strict=True)) == [(40, 0), (41, 1)]


@pytest.mark.parametrize(
    ("size", "seed", "said"),
    [
        (2.5, None, "batch_size must be a whole number and at least 1, not 2.5"),
        ("2", None, "batch_size must be a whole number and at least 1, not '2'"),
        (2, 2.5, "shuffle_seed must be a whole number from 0, or None, not 2.5"),
        (2, -1, "shuffle_seed must be a whole number from 0, or None, not -1"),
    ],
)
def test_minibatches_need_whole_numbers(table: Path, size: Any, seed: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_dataset(table, label="ill").minibatches(size, shuffle_seed=seed)

    assert str(error.value) == said


def test_classes_of_text_for_a_label_of_numbers_are_refused(table: Path) -> None:
    with pytest.raises(
        TaskError, match=r"label column 'ill' of .* holds int64, and the classes are 'no', 'y"
    ):
        open_dataset(table, label="ill", classes=["no", "yes"]).arrays()


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_csv_file_is_called_empty_by_all_that_reads_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    for read in (columns_in, open_dataset):
        with pytest.raises(TaskError, match=r"is empty: put the data there first$"):
            read(tmp_path / "a.csv")


def test_an_empty_csv_file_before_others_says_nothing_about_columns(table: Path) -> None:
    (table / "0.csv").write_bytes(b"")
    (table / "1.csv").write_bytes(b"age,ill\n")

    assert [column.is_whole for column in columns_in(table).values()] == [True, True]


@pytest.mark.parametrize(
    "content",
    [
        "größe,ill\n1,0\n".encode("latin-1"),
        "age,ill\n1,köln\n".encode("latin-1"),
        b"age,ill\n" + b"1,bonn\n" * 200_000 + "1,köln\n".encode("latin-1"),
        "age,ill\n1,köln\n".encode("utf-16"),
        "age,ill\n1,köln\n".encode("utf-16-be"),
    ],
    ids=["name", "value", "late value", "UTF-16", "UTF-16 without a mark"],
)
def test_a_csv_file_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path: Path, content: bytes) -> None:
    """pyarrow takes text that is not UTF-8 for binary (apache/arrow#2924)."""
    (tmp_path / "a.csv").write_bytes(content)

    with pytest.raises(TaskError, match=r"a\.csv is not written in UTF-8: save it as UTF-8, in Excel as"):
        open_dataset(tmp_path, label="ill", classes=["bonn", "köln"]).arrays()


def test_a_column_in_another_encoding_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("age,town,ill\n1,köln,0\n".encode("latin-1"))

    x, _ = open_dataset(tmp_path, columns=["age"], label="ill").arrays()

    assert x.tolist() == [[1]]
    assert columns_in(tmp_path)["town"].kind == "text"


def test_names_of_folders_are_no_columns_and_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "region=EU").mkdir()
    (tmp_path / "region=EU" / "a.csv").write_text("age,ill\n40,1\n")

    for wanted in ({"label": "region"}, {"columns": ["region"]}):
        with pytest.raises(
            TaskError, match=r"column 'region': .* the names of folders are no columns, so wr"
        ):
            open_dataset(tmp_path, **wanted)
    with pytest.raises(TaskError, match=r"column 'year': .* correct the name"):
        open_dataset(tmp_path, label="year")
