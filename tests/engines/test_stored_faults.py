"""Data sets on servers that are gone, frozen or locked: one sentence, soon, and without secrets."""

import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Literal

import pytest
from places import Place

from fluffle.errors import FluffleError, StorageError
from fluffle.storage import hdfs as by_hdfs
from fluffle.storage import s3 as by_s3
from fluffle.storage import web_hdfs as by_web_hdfs
from fluffle.storage import write_to
from fluffle_worker.data import open_dataset
from harness.hdfs import Hdfs
from harness.s3 import S3Server

CSV = b"age,ill\n" + b"".join(b"%d,%d\n" % (at, at % 2) for at in range(100))
# The libraries try again for a while; without bounds they would wait for minutes, or for ever.
SOON_S = 30.0
# Each time more, hdfs-native waits longer.
ONCE = {"dfs.client.failover.max.attempts": "1"}
SECRET = "c2VjcmV0"


@pytest.fixture(scope="module")
def own(java: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """An HDFS which the tests of this module harm, and repair."""
    with Hdfs.start(tmp_path_factory.mktemp("own") / "hdfs") as started:
        yield started


@pytest.fixture(params=["hdfs", "webhdfs"])
def url(request: pytest.FixtureRequest, own: Hdfs, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table in that HDFS."""
    Place("", {"FSSPEC_WEBHDFS_USER": getuser()}).log_in(monkeypatch)
    monkeypatch.setattr(by_hdfs, "SETTINGS", {**by_hdfs.SETTINGS, **ONCE})
    write_to(f"{own.url}/table/part-0.csv", [CSV])
    return f"{own.url if request.param == 'hdfs' else own.webhdfs_url}/table"


def refusal_of(url: str) -> str:
    """Return the sentence with which reading fails, and soon."""
    began = time.monotonic()
    with pytest.raises(FluffleError) as refused:
        open_dataset(url, label="ill").arrays()
    assert time.monotonic() - began < SOON_S
    assert isinstance(refused.value, StorageError)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Let a process do nothing, while the system keeps its connections."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_data_is_read_while_the_namenode_is_in_safe_mode(url: str, own: Hdfs) -> None:
    own.set_safe_mode("enter")

    x, _ = open_dataset(url, label="ill").arrays()

    own.set_safe_mode("leave")
    assert len(x) == 100


def test_a_datanode_that_is_gone_is_named_and_data_is_read_when_it_is_back(url: str, own: Hdfs) -> None:
    own.kill_datanode()

    refusal = refusal_of(url)

    own.start_datanode()
    own.wait_until_it_serves()
    assert refusal.startswith(f"cannot read {url}/part-0.csv: no DataNode answers that has its blocks")
    assert len(open_dataset(url, label="ill").arrays()[0]) == 100


def test_a_namenode_that_is_gone_ends_the_next_pass(url: str, own: Hdfs) -> None:
    minibatches = open_dataset(url, label="ill").minibatches(10)
    assert len(list(minibatches)) == 10
    own.kill_namenode()

    with pytest.raises(StorageError) as refused:
        list(minibatches)
    refusal = refusal_of(url)

    own.start_namenode()
    own.wait_until_it_serves()
    gone = "nothing answers there: see whether it runs, and whether host and port are right"
    assert str(refused.value) == f"cannot look at {url}/part-0.csv: {gone}"
    assert refusal == f"cannot look into {url}: {gone}"


@pytest.mark.parametrize("which", ["namenode", "datanode"])
def test_a_frozen_server_is_not_waited_for_for_ever(
    url: str, own: Hdfs, which: Literal["namenode", "datanode"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hdfs, "TIMEOUT_S", 3.0)
    monkeypatch.setattr(by_hdfs, "SETTINGS", {**by_hdfs.SETTINGS, "dfs.client.socket-timeout": "1000"})
    monkeypatch.setattr(by_web_hdfs, "TIMEOUTS_S", (1.0, 2.0))

    with frozen(own.pid_of(which)):
        refusal = refusal_of(url)

    own.wait_until_it_serves()
    assert "it does not answer in time" in refusal or "no DataNode answers" in refusal


def test_a_host_that_does_not_exist_is_told_from_one_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_hdfs, "SETTINGS", ONCE)

    assert "its host name is unknown" in refusal_of("webhdfs://nowhere.invalid:9870/table")
    assert "its host name is unknown" in refusal_of("hdfs://nowhere.invalid:8020/table")
    assert "write the port, as in hdfs://namenode:8020/path" in refusal_of("hdfs://hospital/table")


def test_a_delegation_token_stands_in_no_error(own: Hdfs, monkeypatch: pytest.MonkeyPatch) -> None:
    Place("", {"FSSPEC_WEBHDFS_TOKEN": SECRET}).log_in(monkeypatch)
    urls = (f"{own.webhdfs_url}/nothing", "webhdfs://127.0.0.1:1/table", "webhdfs://nowhere.invalid:1/table")

    for url in urls:
        with pytest.raises(StorageError) as refused:
            open_dataset(url, label="ill")
        assert isinstance(refused.value.__cause__, OSError)
        assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_bucket_that_does_not_exist_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Place("", s3.environment).log_in(monkeypatch)

    for url in ("s3://nobody-has-it/table", "s3://nobody-has-it/*.csv"):
        assert (
            refusal_of(url)
            == f"cannot look into {url}: there is no such bucket: correct its name, or create it"
        )


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_the_right_credentials_the_variables_are_named(
    s3: S3Server, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Place("", s3.environment).log_in(monkeypatch)
    write_to(f"{s3.url}/locked/part-0.csv", [CSV])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, key) if key else monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "nothing"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    refusal = refusal_of(f"{s3.url}/locked/part-0.csv")

    assert "the object store refuses the access: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal


def test_a_store_that_is_frozen_or_gone_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_s3, "REQUEST_TIMEOUT_S", 1.0)
    with S3Server.start(tmp_path) as own:
        Place("", own.environment).log_in(monkeypatch)
        write_to(f"{own.url}/table/part-0.csv", [CSV])
        with frozen(own.process.pid):
            late = refusal_of(f"{own.url}/table")
    gone = refusal_of(f"{own.url}/table")

    assert (
        late
        == f"cannot look into {own.url}/table: it does not answer in time: see whether it runs, and try again"
    )
    assert gone.startswith(f"cannot look into {own.url}/table: nothing answers there: see whether it runs")
