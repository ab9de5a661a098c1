"""Copies of remote files on a local disk: bounded, checked, and shared by processes."""

import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fluffle.errors import ConfigError, StorageError
from fluffle.storage import StoredFile, locate
from fluffle_worker.data import Cache


class Remote:
    """Files of 1,000 bytes in a folder, and how often each was fetched."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.location = locate(folder)
        self.fetched: list[str] = []
        for name in "abcd":
            (folder / name).write_bytes(name.encode() * 1000)
        self.files = {Path(file.path).name: file for file in self.location.files()}

    @contextmanager
    def open(self, file: StoredFile) -> Iterator[Any]:
        self.fetched.append(Path(file.path).name)
        with self.location.open(file) as stream:
            yield stream

    def read(self, cache: Cache, name: str) -> bytes:
        descriptor = cache.copy_of(self.files[name], self.open)
        try:
            return os.pread(descriptor, 10_000, 0)
        finally:
            os.close(descriptor)


class BrokenStream:
    """A connection that breaks at once."""

    def read(self, _: int) -> bytes:
        raise ConnectionResetError


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path / "remote")


def copies(cache: Cache) -> list[Path]:
    return sorted(Path(cache.folder).glob("*.copy"))


def test_a_file_is_fetched_once_and_then_read_from_its_copy(remote: Remote, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    assert {remote.read(cache, "a") for _ in range(3)} == {b"a" * 1000}
    assert {remote.read(Cache(tmp_path / "cache"), "a")} == {b"a" * 1000}

    assert remote.fetched == ["a"]
    assert [path.stat().st_mode & 0o777 for path in copies(cache)] == [0o600]


def test_what_was_not_used_for_longest_goes_where_a_new_copy_has_no_room(
    remote: Remote, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=3000)

    for name in "abcad":
        remote.read(cache, name)
    for name in "ac":
        remote.read(cache, name)

    assert remote.fetched == ["a", "b", "c", "d"]
    assert sum(path.stat().st_size for path in copies(cache)) == 3000


def test_a_file_that_is_larger_than_the_cache_is_not_copied(remote: Remote, tmp_path: Path) -> None:
    assert not Cache(tmp_path / "cache", max_bytes=999).holds(remote.files["a"])
    assert Cache(tmp_path / "cache", max_bytes=1000).holds(remote.files["a"])


def test_a_damaged_copy_is_fetched_again_and_the_log_says_so(
    remote: Remote, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path / "cache")
    remote.read(cache, "a")
    [copy] = copies(cache)
    copy.write_bytes(b"b" + copy.read_bytes()[1:])

    content = remote.read(cache, "a")

    assert content == b"a" * 1000
    assert caplog.text.count("a copy in the cache is damaged, and is fetched again") == 1
    assert remote.files["a"].url in caplog.text
    assert remote.fetched == ["a", "a"]


def test_a_fetch_that_fails_leaves_nothing(remote: Remote, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    @contextmanager
    def broken(file: StoredFile) -> Iterator[Any]:
        with remote.location.open(file):
            yield BrokenStream()

    with pytest.raises(StorageError, match="ConnectionResetError"):
        cache.copy_of(remote.files["a"], broken)

    assert not [path for path in Path(cache.folder).iterdir() if path.suffix != ".lock"]


def test_a_disk_that_takes_only_a_part_of_a_file_is_an_error_and_no_copy_is_left(
    remote: Remote, tmp_path: Path
) -> None:
    """The system writes up to the limit, says how much that was, and raises an error the next time."""
    cache = Cache(tmp_path / "cache")

    @contextmanager
    def longer(file: StoredFile) -> Iterator[Any]:
        yield io.BytesIO(b"a" * 2000)

    before = os.listdir("/dev/fd")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot write to the cache folder .*: File too large"):
            cache.copy_of(remote.files["a"], longer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert not [path for path in Path(cache.folder).iterdir() if path.suffix != ".lock"]
    assert os.listdir("/dev/fd") == before
    assert remote.read(cache, "a") == b"a" * 1000


def test_a_part_that_a_dead_process_has_left_is_removed(remote: Remote, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    left, fresh = Path(cache.folder) / "left.part", Path(cache.folder) / "fresh.part"
    for path in (left, fresh):
        path.write_bytes(b"1")
    os.utime(left, (time.time() - 7200,) * 2)

    remote.read(cache, "a")

    assert not left.exists()
    assert fresh.exists()


def test_processes_that_want_the_same_files_at_once_fetch_each_of_them_once(
    remote: Remote, tmp_path: Path
) -> None:
    program = """if True:
        import os, sys
        from fluffle.storage import locate
        from fluffle_worker.data import Cache

        cache, location = Cache(sys.argv[2]), locate(sys.argv[1])
        fetched = []

        def opened(file):
            fetched.append(file)
            return location.open(file)

        for file in location.files() * 5:
            descriptor = cache.copy_of(file, opened)
            assert os.pread(descriptor, 2000, 0) == os.path.basename(file.path).encode() * 1000
        print(len(fetched))
    """
    command = [sys.executable, "-c", program, str(tmp_path / "remote"), str(tmp_path / "cache")]

    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in started]

    assert [process.returncode for process in started] == [0] * 4
    assert sum(map(int, said)) == len(remote.files)


def test_a_folder_that_cannot_be_written_is_named(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigError, match=r"cannot write to the cache folder .*/file/cache: Not a directory"):
        Cache(tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match="max_bytes of a cache must be at least 1, not 0"):
        Cache(tmp_path / "cache", max_bytes=0)
