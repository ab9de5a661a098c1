"""The HDFS that tests get is a real one: what it stores, and what clients see when it is harmed."""

from collections.abc import Iterator

import pytest
from fsspec.implementations.webhdfs import WebHDFS
from hdfs_native import Client

from harness.hdfs import Hdfs


@pytest.fixture(scope="module")
def harmed(java: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """An HDFS for the tests here alone, which harm it."""
    with Hdfs.start(tmp_path_factory.mktemp("hdfs")) as started:
        yield started


def test_webhdfs_reads_what_hdfs_native_wrote(hdfs: Hdfs) -> None:
    write(hdfs, "/both.bin", b"four")

    web = WebHDFS("127.0.0.1", hdfs.http_port, user="somebody")

    assert web.cat("/both.bin") == b"four"


def test_in_safe_mode_files_are_read_and_not_written(harmed: Hdfs) -> None:
    write(harmed, "/before", b"1")

    harmed.set_safe_mode("enter")
    with pytest.raises(Exception, match="Name node is in safe mode"):
        write(harmed, "/during", b"2")
    assert read(harmed, "/before") == b"1"
    harmed.set_safe_mode("leave")

    write(harmed, "/after", b"3")


def test_files_outlive_the_namenode_and_the_datanode(harmed: Hdfs) -> None:
    write(harmed, "/kept", b"kept")

    harmed.kill_datanode()
    harmed.kill_namenode()
    harmed.start_namenode()
    harmed.start_datanode()
    harmed.wait_until_it_serves()

    assert read(harmed, "/kept") == b"kept"

    harmed.kill_datanode()
    harmed.start_datanode()
    harmed.wait_until_it_serves()

    assert read(harmed, "/kept") == b"kept"


def write(hdfs: Hdfs, path: str, content: bytes) -> None:
    with Client(hdfs.url).create(path) as file:
        file.write(content)


def read(hdfs: Hdfs, path: str) -> bytes:
    with Client(hdfs.url).read(path) as file:
        return bytes(file.read())
