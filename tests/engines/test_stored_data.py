"""Data sets at each kind of URL: the same rows everywhere, and what is said when a file or a server changes.

Public reports of what must not happen: a store's endpoint in the environment that nobody reads
(apache/arrow#49643); a process that hangs or aborts after it has read through Python (apache/arrow#34314,
#33975, #50482); names with =, %, + and spaces that WebHDFS does not find (fsspec/filesystem_spec#1428,
jingw/pyhdfs#15, mtth/hdfs#11).
"""

import gzip
import io
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from places import SCHEMES, Place, place_of

from fluffle.errors import TaskError
from fluffle.storage import locate, write_to
from fluffle.task import Site
from fluffle_worker.data import Cache, open_dataset
from fluffle_worker.data.stored import following, parquet
from fluffle_worker.data.stored.dataset import Arrays
from harness.federation import ROOT
from harness.hdfs import Hdfs
from harness.s3 import S3Server

ROWS = 500
ENDS_SOON_S = 60


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder at each kind of URL."""
    found = place_of(request.param, request)
    found.log_in(monkeypatch)
    return found


@pytest.fixture(params=SCHEMES[1:])
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder at each kind of URL that is not on this machine."""
    found = place_of(request.param, request)
    found.log_in(monkeypatch)
    return found


def a_table(rows: int = ROWS, begin: int = 0) -> pa.Table:
    numbers = np.arange(begin, begin + rows)
    columns = {f"column {at}": (numbers * (at + 1) % 1000).astype(np.float32) for at in range(4)}
    return pa.table({**columns, "ill": numbers % 3})


def as_parquet(table: pa.Table) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=100)
    return content.getvalue()


def as_csv(table: pa.Table) -> bytes:
    content = io.BytesIO()
    pc.write_csv(table, content)
    return content.getvalue()


def as_npz(table: pa.Table) -> bytes:
    content = io.BytesIO()
    columns = [table.column(name).to_numpy() for name in table.column_names]
    np.savez_compressed(content, x=np.stack(columns[:-1], axis=1), y=columns[-1])
    return content.getvalue()


def expected(rows: int = ROWS) -> tuple[Any, Any]:
    columns = [column.to_numpy() for column in a_table(rows).columns]
    return np.stack(columns[:-1], axis=1), columns[-1]


FORMATS: dict[str, tuple[Callable[[pa.Table], bytes], str | None]] = {
    "parquet": (as_parquet, "ill"),
    "csv": (as_csv, "ill"),
    "csv.gz": (lambda table: gzip.compress(as_csv(table)), "ill"),
    "npz": (as_npz, None),
}


def sorted_rows(arrays: Arrays) -> tuple[Any, Any]:
    x, y = arrays
    order = np.lexsort(x.T)
    return x[order], y[order]


def put_table(place: Place, kind: str = "parquet", files: int = 2) -> str:
    """Write the rows to some files in a folder, and return its URL."""
    write, _ = FORMATS[kind]
    rows = ROWS // files
    for file in range(files):
        write_to(f"{place.url}/table/part-{file}.{kind}", [write(a_table(rows, file * rows))])
    write_to(f"{place.url}/table/_SUCCESS", [b""])
    return f"{place.url}/table"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_rows_of_a_folder_are_the_same_wherever_it_lies(place: Place, kind: str) -> None:
    url, label = put_table(place, kind), FORMATS[kind][1]

    whole = open_dataset(url, label=label)
    one_file = open_dataset(f"{url}/*-0.{kind}", label=label).arrays()
    sites = [open_dataset(url, label=label, shard=Site(index=at, count=3)).arrays() for at in range(3)]

    for found, wanted in zip(whole.arrays(), expected(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(one_file, expected(ROWS // 2), strict=True):
        np.testing.assert_array_equal(found, wanted)
    together = tuple(np.concatenate(each) for each in zip(*sites, strict=True))
    for found, wanted in zip(sorted_rows(together), sorted_rows(expected()), strict=True):
        np.testing.assert_array_equal(found, wanted)
    for _ in range(2):
        passed = [np.concatenate(each) for each in zip(*whole.minibatches(64), strict=True)]
        np.testing.assert_array_equal(passed[0], expected()[0])


def test_images_are_the_same_wherever_they_lie(place: Place) -> None:
    for name, grey in (("cat", 10), ("dog", 200)):
        for at in range(4):
            content = io.BytesIO()
            Image.new("L", (5, 3), grey + at).save(content, "png")
            write_to(f"{place.url}/{name}/{at}.png", [content.getvalue()])

    x, y = open_dataset(place.url).arrays()

    assert x.shape == (8, 3, 5, 1)
    assert x[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 200, 201, 202, 203]
    assert y.tolist() == [0] * 4 + [1] * 4


def test_a_row_group_that_is_too_large_to_be_fetched_whole_holds_the_same_rows(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put_table(place)
    monkeypatch.setattr(parquet, "WHOLE_GROUP_BYTES", 0)

    x, y = open_dataset(url, columns=["column 2", "column 0"], label="ill").arrays()

    np.testing.assert_array_equal(x, expected()[0][:, [2, 0]])
    np.testing.assert_array_equal(y, expected()[1])


def test_a_name_may_have_characters_that_urls_write_otherwise(place: Place) -> None:
    url = f"{place.url}/day=2024-01-01/a b+c%20%C3 ä#1&2.parquet"
    write_to(url, [as_parquet(a_table())])

    found = [open_dataset(each, label="ill").arrays()[0] for each in (url, place.url, f"{place.url}/day=*/*")]

    for x in found:
        np.testing.assert_array_equal(x, expected()[0])


def test_a_file_that_changes_or_vanishes_between_two_passes_ends_the_second(place: Place) -> None:
    url = put_table(place)
    minibatches = open_dataset(url, label="ill").minibatches(32)
    assert sum(len(x) for x, _ in minibatches) == ROWS

    write_to(f"{url}/part-1.parquet", [as_parquet(a_table(7))])
    with pytest.raises(TaskError) as changed:
        list(minibatches)
    location = locate(f"{url}/part-0.parquet")
    location.filesystem.delete_file(location.path)
    with pytest.raises(TaskError) as vanished:
        list(minibatches)

    assert re.search(
        r"/part-1.parquet has changed since the task began \([\d,]+ bytes then, [\d,]+ now\): start again",
        str(changed.value),
    )
    assert "/part-0.parquet has vanished since the task began: put it back" in str(vanished.value)


def test_a_schema_that_differs_among_files_names_both_and_the_column(place: Place) -> None:
    url = put_table(place)
    more = a_table().append_column("weight", pa.array([1.0] * ROWS))
    texts = a_table().set_column(1, "column 1", pa.array(["a"] * ROWS))

    said = {}
    for what, table in {"more": more, "fewer": a_table().drop(["column 3"]), "texts": texts}.items():
        write_to(f"{url}/part-2.parquet", [as_parquet(table)])
        with pytest.raises(TaskError) as refused:
            open_dataset(url, label="ill")
        said[what] = str(refused.value).replace(f"{url}/", "")

    same = "all files must have the same columns, or name those that all have with columns="
    assert said == {
        "more": f"part-2.parquet has the column 'weight', which part-0.parquet does not have: {same}",
        "fewer": f"part-2.parquet has no column 'column 3', which part-0.parquet has: {same}",
        "texts": "the column 'column 1' holds string in part-2.parquet, and float in part-0.parquet: "
        "write it in the same way to all files, or leave it out with columns=",
    }
    write_to(f"{url}/part-2.parquet", [as_parquet(more)])
    assert len(open_dataset(url, columns=["column 1"], label="ill").arrays()[0]) == 2 * ROWS


def test_threads_of_one_process_read_from_hdfs_at_the_same_time(hdfs: Hdfs) -> None:
    url = put_table(Place(f"{hdfs.url}/threads", {}), "csv", files=1)

    def rows_of(_: int) -> int:
        return len(open_dataset(url, label="ill").arrays()[0])

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(rows_of, range(600))) == {ROWS}


def test_a_cache_holds_what_a_second_worker_reads(remote: Place, tmp_path: Path) -> None:
    url = put_table(remote)
    cache = Cache(tmp_path / "cache")

    first = open_dataset(url, label="ill", cache=cache).arrays()
    second = open_dataset(url, label="ill", cache=Cache(tmp_path / "cache")).arrays()
    small = open_dataset(url, label="ill", cache=Cache(tmp_path / "small", max_bytes=1)).arrays()

    assert len(list((tmp_path / "cache").glob("*.copy"))) == 2
    assert not list((tmp_path / "small").glob("*.copy"))
    for found in (first, second, small):
        np.testing.assert_array_equal(found[0], expected()[0])


def test_the_log_shows_how_far_a_long_pass_is_and_which_rows_have_no_label(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{place.url}/table.parquet"
    labels = pa.array([None if at < 5 else at % 2 for at in range(ROWS)])
    write_to(url, [as_parquet(a_table().set_column(4, "ill", labels))])
    monkeypatch.setattr(following, "LOG_EVERY_S", 0.0)

    with caplog.at_level("INFO"):
        assert len(open_dataset(url, label="ill").arrays()[0]) == ROWS - 5

    events = [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]
    assert events[0] == "reading data"
    assert events[-2:] == ["data read", "rows without a label are left out"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_process_that_ends_right_after_it_has_read_ends_well(remote: Place, kind: str) -> None:
    url = put_table(remote, kind)
    program = """if True:
        import sys
        from fluffle_worker.data import open_dataset

        dataset = open_dataset(sys.argv[1], label="ill")
        dataset.arrays()
        held = iter(dataset.minibatches(10))
        next(held)
    """

    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", program, url],
            capture_output=True,
            text=True,
            check=False,
            timeout=ENDS_SOON_S,
        )
        assert (ended.returncode, ended.stderr) == (0, "")


def test_the_code_of_the_docs_reads_what_lies_in_hdfs_and_in_a_bucket(
    hdfs: Hdfs, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Place("", s3.environment).log_in(monkeypatch)
    table = a_table().rename_columns(["a", "b", "c", "d", "outcome"])
    write_to(f"{hdfs.url}/hospital/train/part-0.parquet", [as_parquet(table)])
    write_to(f"{s3.url}/shown/held-out.csv", [as_csv(table)])
    for name in ("cat", "dog"):
        content = io.BytesIO()
        Image.new("RGB", (9, 9)).save(content, "png")
        write_to(f"{s3.url}/shown/photos/{name}/1.png", [content.getvalue()])
    places = {
        "hdfs://namenode:8020": hdfs.url,
        "s3://hospital": f"{s3.url}/shown",
        "/var/tmp/fluffle": str(tmp_path),
    }
    page = (ROOT / "docs" / "data.md").read_text()
    for said, real in places.items():
        assert said in page
        page = page.replace(said, real)

    names: dict[str, Any] = {}
    found: list[Any] = []
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(snippet, names)
        found.append(names["train_data"](Site(index=1, count=2)))

    arrays, minibatches, images = found
    assert len(arrays[0]) == len(arrays[1]) == ROWS // 2
    assert len(names["eval_data"]()[0]) == ROWS
    assert [len(x) for x, _ in minibatches] == [64, 64, 64, ROWS // 2 - 192]
    assert [x.shape for x, _ in images] == [(1, 64, 64, 3)]
    # Of the site's own image, and of the first of all, which decides what kind all are.
    assert len(list(tmp_path.glob("*.copy"))) == 2
