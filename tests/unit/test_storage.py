"""Files by URL: what a URL may be, which files it means, and what is said of one that cannot be used."""

from pathlib import Path

import pytest

from fluffle.errors import ConfigError, FluffleError, StorageError
from fluffle.storage import locate, shown, write_to


def a_folder(folder: Path) -> str:
    for name in (
        "a/year=1/one.csv",
        "a/year=2/two.csv",
        "a/year=2/_SUCCESS",
        "a/year=2/.two.csv.crc",
        "b.txt",
    ):
        write_to(folder / name, [b"1,", memoryview(b"2")])
    return str(folder)


@pytest.mark.parametrize("scheme", ["", "file://", "file://localhost"])
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("b.txt", ["b.txt"]),
        ("a", ["a/year=1/one.csv", "a/year=2/two.csv"]),
        ("a/year=2/", ["a/year=2/two.csv"]),
        ("a/*/*.csv", ["a/year=1/one.csv", "a/year=2/two.csv"]),
        ("a/year=*", ["a/year=1/one.csv", "a/year=2/two.csv"]),
        ("?.t[x]t", ["b.txt"]),
        ("a/year=2/_*", ["a/year=2/_SUCCESS"]),
    ],
)
def test_a_url_means_a_file_or_all_of_a_folder_or_what_fits_a_pattern(
    tmp_path: Path, scheme: str, pattern: str, found: list[str]
) -> None:
    folder = a_folder(tmp_path)

    files = locate(f"{scheme}{folder}/{pattern}").files()

    assert [file.path for file in files] == [f"{folder}/{name}" for name in found]
    assert {file.size_bytes for file in files} == {3}


def test_a_file_is_read_and_is_another_one_after_it_was_written_again(tmp_path: Path) -> None:
    location = locate(a_folder(tmp_path) + "/b.txt")
    [before] = location.files()

    with location.open(before) as stream:
        content = stream.read()
    write_to(tmp_path / "b.txt", [b"12345"])

    assert content == b"1,2"
    assert location.now(before) not in (None, before)


def test_what_a_name_says_literally_comes_before_the_pattern_that_it_also_is(tmp_path: Path) -> None:
    write_to(tmp_path / "data[1].csv", [b"1"])
    write_to(tmp_path / "data1.csv", [b"1"])

    [found] = locate(tmp_path / "data[1].csv").files()

    assert found.path.endswith("data[1].csv")


def test_a_file_whose_writing_fails_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    write_to(tmp_path / "model", [b"old"])

    def parts() -> list[bytes]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_to(tmp_path / "model", (part for _ in (1,) for part in parts()))

    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model", b"old")]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://bucket/x", "known are file://, hdfs://, webhdfs://, s3:// and plain paths"),
        ("s3:///x", "s3:///x names no bucket: write s3://BUCKET/path"),
        ("hdfs:///x", "hdfs:///x names no host"),
        ("hdfs://namenode:70000/x", "a port is a number from 1 to 65535"),
        ("file://data/x", "write file:///x, with three slashes"),
        ("s3://AKIA:geheim@bucket/x", "s3://bucket/x has a user or a password before the @"),
        ("webhdfs://me:geheim@host/x", "webhdfs://host/x has a user or a password before the @"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_without_its_secrets(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        locate(url)

    assert said in str(refused.value)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nothing", "nothing: there is no such file or folder"),
        ("*.csv", "*.csv fits no file: correct the path, or put the data there first"),
        ("empty", "empty holds no file"),
    ],
)
def test_a_path_without_files_says_so(tmp_path: Path, url: str, said: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(StorageError) as refused:
        locate(tmp_path / url).files()

    assert said in str(refused.value)


def test_a_library_that_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fluffle.storage.hdfs", None)

    with pytest.raises(FluffleError, match=r"pip install 'fluffle\[storage\]'"):
        locate("hdfs://namenode:8020/x")


def test_a_url_is_shown_without_its_user_and_password() -> None:
    assert shown("webhdfs://me:secret@host:9870/a@b") == "webhdfs://host:9870/a@b"
    assert shown("/a/b@c") == "/a/b@c"
