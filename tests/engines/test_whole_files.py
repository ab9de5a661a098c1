"""A file at a URL is there as a whole or not at all: what is written, replaced, broken off or refused.

Public reports of what must not happen: an object that is complete though the program failed in the middle
(apache/arrow#40502, PyFilesystem/s3fs#95, aws/aws-sdk-pandas#2987), and a rename by WebHDFS that leaves the
old file where it is (mtth/hdfs#210).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from getpass import getuser
from pathlib import Path

import pytest
from places import SCHEMES, Place, place_of
from pyarrow.fs import FileSelector

from fluffle.errors import StorageError
from fluffle.storage import content_of, locate, write_to, written_to
from harness.federation import ROOT
from harness.hdfs import Hdfs
from harness.s3 import S3Server

# Hadoop's and Amazon's libraries try again for a while.
SOON_S = 60.0


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder at each kind of URL."""
    found = place_of(request.param, request)
    found.log_in(monkeypatch)
    return found


def names_in(place: Place) -> list[str]:
    """Return what is in a folder, hidden files too."""
    location = locate(place.url)
    selector = FileSelector(location.path, allow_not_found=True, recursive=True)
    return sorted(each.base_name for each in location.filesystem.get_file_info(selector))


def put(url: str, content: bytes) -> None:
    with written_to(url) as path:
        path.write_bytes(content)


def refusal_of(call: Callable[[], object]) -> str:
    """Return the sentence with which a call fails, and soon."""
    began = time.monotonic()
    with pytest.raises(StorageError) as refused:
        call()
    assert time.monotonic() - began < SOON_S
    return str(refused.value)


def test_what_was_written_is_read_and_what_is_written_again_replaces_it(place: Place) -> None:
    url = f"{place.url}/model.bin"
    put(url, b"old, and longer")
    assert content_of(url) == b"old, and longer"

    put(url, b"new")

    assert content_of(url) == b"new"
    assert names_in(place) == ["model.bin"]


def test_what_fails_before_the_end_leaves_the_old_file_alone(place: Place) -> None:
    url = f"{place.url}/model.bin"
    put(url, b"old")

    def fail() -> None:
        with written_to(url) as path:
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert content_of(url) == b"old"
    assert names_in(place) == ["model.bin"]


def test_an_upload_that_fails_in_the_middle_leaves_the_old_file_alone(place: Place) -> None:
    url = f"{place.url}/model.bin"
    put(url, b"old")

    def parts() -> Iterator[bytes]:
        yield bytes(20_000_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_to(url, parts())

    assert content_of(url) == b"old"
    assert names_in(place) == ["model.bin"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file_alone(place: Place) -> None:
    url = f"{place.url}/model.bin"
    put(url, b"old")
    program = """if True:
        import os, signal, sys
        from fluffle.storage import write_to

        def parts():
            yield bytes(20_000_000)
            os.kill(os.getpid(), signal.SIGKILL)

        write_to(sys.argv[1], parts())
    """

    ended = subprocess.run([sys.executable, "-c", program, url], env=os.environ, check=False, timeout=SOON_S)

    assert ended.returncode == -signal.SIGKILL
    assert content_of(url) == b"old"
    assert [file.url for file in locate(place.url).files()] == [url]


def test_a_folder_is_not_replaced_by_a_file(place: Place) -> None:
    put(f"{place.url}/models/model.bin", b"one")

    refusal = refusal_of(lambda: put(f"{place.url}/models", b"two"))

    assert f"cannot write {place.url}/models: it is a folder, and a file is expected" in refusal
    assert content_of(f"{place.url}/models/model.bin") == b"one"


def test_several_files_are_not_read_as_one(place: Place) -> None:
    put(f"{place.url}/one.bin", b"1")
    put(f"{place.url}/two.bin", b"2")

    several = refusal_of(lambda: content_of(f"{place.url}/*.bin"))
    none = refusal_of(lambda: content_of(f"{place.url}/three.bin"))

    assert several == f"{place.url}/*.bin means 2 files, and one is expected: name it"
    assert none == f"cannot look into {place.url}/three.bin: there is no such file or folder"


@pytest.fixture
def own(java: str, tmp_path: Path) -> Iterator[Hdfs]:
    """An HDFS for one test, which harms it."""
    with Hdfs.start(tmp_path / "hdfs") as started:
        yield started


def test_hdfs_in_safe_mode_keeps_the_old_file_and_then_hdfs_that_is_gone_is_named(
    own: Hdfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    Place(own.url, {"FSSPEC_WEBHDFS_USER": getuser()}).log_in(monkeypatch)
    urls = [f"{own.url}/model.bin", f"{own.webhdfs_url}/model.bin"]
    put(urls[0], b"old")

    own.set_safe_mode("enter")
    for url in urls:
        refusal = refusal_of(partial(put, url, b"new"))
        assert refusal.startswith(f"cannot write {url}: the NameNode is in safe mode: wait until it has left")
        assert content_of(url) == b"old"

    own.kill_namenode()
    for url in urls:
        refusal = refusal_of(partial(put, url, b"new"))
        assert refusal.startswith(f"cannot write {url}: nothing answers there: see whether it runs")


@pytest.mark.long
def test_hdfs_without_a_datanode_keeps_the_old_file(own: Hdfs) -> None:
    url, what = f"{own.url}/model.bin", "no DataNode answers that has its blocks, or takes new"
    put(url, b"old")
    own.kill_datanode()

    assert refusal_of(lambda: put(url, b"new")).startswith(f"cannot write {url}: {what}")
    assert refusal_of(lambda: content_of(url)).startswith(f"cannot read {url}: {what}")
    own.start_datanode()
    own.wait_until_it_serves()

    assert content_of(url) == b"old"


@pytest.mark.parametrize("keys", [{}, {"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN", "AWS_SECRET_ACCESS_KEY": "wrong"}])
def test_without_the_right_credentials_a_store_keeps_its_file_and_the_sentence_names_the_variables(
    s3: S3Server, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Place(s3.url, s3.environment).log_in(monkeypatch)
    url = f"{s3.url}/kept/model.bin"
    put(url, b"old")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)

    refusal = refusal_of(lambda: put(url, b"new"))

    assert refusal.startswith(f"cannot write {url}: the object store refuses the access: set AWS_ACCESS_KEY")
    assert s3.client().get_object(Bucket=s3.bucket, Key="kept/model.bin")["Body"].read() == b"old"


def test_the_rights_that_the_docs_name_are_enough_to_write_and_to_read(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"]
    described = (ROOT / "docs" / "data.md").read_text()
    assert f"{below[0]}`, `{below[1]}` and `{below[2]}` below the prefix, and `s3:ListBucket`" in described
    user = s3.with_user(
        "ward-7",
        {"Effect": "Allow", "Action": below, "Resource": f"arn:aws:s3:::{s3.bucket}/ward-7/*"},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{s3.bucket}"},
    )
    Place(user.url, user.environment).log_in(monkeypatch)

    put(f"{user.url}/ward-7/model.bin", b"mine")
    refusal = refusal_of(lambda: put(f"{user.url}/ward-8/model.bin", b"other"))

    assert content_of(f"{user.url}/ward-7/model.bin") == b"mine"
    assert "ward-8/model.bin: the object store refuses the access" in refusal


def test_a_bucket_that_does_not_exist_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Place(s3.url, s3.environment).log_in(monkeypatch)

    refusal = refusal_of(lambda: put("s3://nowhere/model.bin", b"new"))

    assert refusal.startswith(
        "cannot write s3://nowhere/model.bin: there is no such bucket: correct its name"
    )
