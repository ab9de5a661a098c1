"""HDFS by hdfs-native, a client in Rust: no Java is needed."""

import io
import os
import threading
from collections.abc import Callable
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import hdfs_native
import numpy as np
import pyarrow as pa
from pyarrow import fs

Answer = TypeVar("Answer")

# hdfs-native itself waits for ever for a NameNode or DataNode that has stopped and keeps its connections.
TIMEOUT_S = 120.0
# How long an interrupted program waits for a call, so as not to end in the middle of it.
INTERRUPTED_S = 3.0
# Where nothing answers, hdfs-native would try for three minutes; four times are about ten seconds.
# A DataNode that does not answer costs half a minute, and then another one is asked.
SETTINGS = {"dfs.client.failover.max.attempts": "4", "dfs.client.socket-timeout": "30000"}
# What hdfs-native takes from the environment: who the user is, and where the cluster's configuration lies.
ENVIRONMENT = (
    "HADOOP_USER_NAME",
    "HADOOP_PROXY_USER",
    "HADOOP_TOKEN_FILE_LOCATION",
    "HADOOP_CONF_DIR",
    "HADOOP_HOME",
    "KRB5CCNAME",
    "KRB5_CONFIG",
)


def hdfs_filesystem(host: str, port: int | None) -> fs.FileSystem:
    """Return the filesystem of this NameNode, or of this name service in the folder HADOOP_CONF_DIR."""
    authority = f"{host}:{port}" if port else host
    return fs.PyFileSystem(_Hdfs(f"hdfs://{authority}"))


def _client(url: str) -> hdfs_native.Client:
    """Return this process's client of a NameNode. Raises OSError for a URL that means none.

    All clients share their connections to DataNodes, and one that is let go of ends those that it made, also
    while another one reads from them. So a client stays as long as the process.
    """
    login = tuple(os.environ.get(name) for name in ENVIRONMENT)
    return _lasting_client(url, tuple(SETTINGS.items()), login, os.getpid())


@cache
def _lasting_client(url: str, settings: tuple[tuple[str, str], ...], *_: object) -> hdfs_native.Client:
    try:
        return hdfs_native.Client(url, dict(settings))
    except RuntimeError as error:
        raise OSError(str(error)) from error


def within_timeout(call: Callable[[], Answer]) -> Answer:
    """Return what a call returns, or raise an OSError; TimeoutError if it takes more than `TIMEOUT_S`.

    A call that hangs is left behind in its thread, which ends with the process. Any other must be waited for
    also when the process ends: Python would end its thread in the middle of hdfs-native's code.
    """
    outcome: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((True, call()))
        except BaseException as error:  # hdfs-native's panics too
            outcome.put((False, error))

    thread = threading.Thread(target=run, name="fluffle-hdfs", daemon=True)
    thread.start()
    try:
        is_answer, found = outcome.get(timeout=TIMEOUT_S)
    except Empty:
        raise TimeoutError(f"timed out after {TIMEOUT_S:.0f} s") from None
    except KeyboardInterrupt:
        thread.join(INTERRUPTED_S)
        raise
    if is_answer:
        answer: Answer = found
        return answer
    if isinstance(found, RuntimeError) or not isinstance(found, Exception):
        raise OSError(str(found)) from found
    raise found


class _Hdfs(fs.FileSystemHandler):
    """What pyarrow asks of a filesystem, answered by hdfs-native's client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = _client(url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hdfs) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def get_type_name(self) -> str:
        return "hdfs-native"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> fs.FileInfo:
        try:
            return _as_info(within_timeout(lambda: self._client.get_file_info(path)))
        except FileNotFoundError:
            return fs.FileInfo(path, fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        folder, deep = selector.base_dir, selector.recursive
        try:
            found = within_timeout(lambda: list(self._client.list_status(folder, deep)))
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise
        if [each.path for each in found] == [folder] and not found[0].isdir:
            raise NotADirectoryError(folder)
        return [_as_info(each) for each in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        within_timeout(lambda: self._client.mkdirs(path, create_parent=recursive))

    def delete_dir(self, path: str) -> None:
        within_timeout(lambda: self._client.delete(path, recursive=True))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        for each in self.get_file_info_selector(fs.FileSelector(path, missing_dir_ok)):
            self.delete_dir(each.path)

    def delete_root_dir_contents(self) -> None:
        self.delete_dir_contents("/")

    def delete_file(self, path: str) -> None:
        if not within_timeout(lambda: self._client.delete(path)):
            raise FileNotFoundError(path)

    def move(self, src: str, dest: str) -> None:
        within_timeout(lambda: self._client.rename(src, dest, overwrite=True))

    def copy_file(self, src: str, dest: str) -> None:
        raise io.UnsupportedOperation(f"HDFS cannot copy {src} to {dest} by itself")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_Reader(within_timeout(lambda: self._client.read(path))), mode="r")

    def open_output_stream(self, path: str, _metadata: object) -> pa.PythonFile:
        options = hdfs_native.WriteOptions(overwrite=True)
        return _writing(lambda: self._client.create(path, options))

    def open_append_stream(self, path: str, _metadata: object) -> pa.PythonFile:
        return _writing(lambda: self._client.append(path))


class _Reader(io.RawIOBase):
    """An open file; hdfs-native panics where a read begins or ends behind the last byte."""

    def __init__(self, file: hdfs_native.FileReader) -> None:
        self._file = file
        self._at, self._size = 0, len(file)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = begin + offset
        return self._at

    def read(self, size: int = -1) -> memoryview:
        begin = self._at
        left = max(0, self._size - begin)
        size = left if size < 0 else min(size, left)
        # Not one range, of which hdfs-native would make three copies.
        content = np.empty(size, np.uint8)

        def fill() -> None:
            at = 0
            for piece in self._file.read_range_stream(begin, size):
                content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
            if at != size:
                raise OSError(f"the file ends after {begin + at} bytes and not {begin + size}")

        if size:
            within_timeout(fill)
        self._at = begin + size
        return content.data


class _Writer(io.RawIOBase):
    """A file that is being written; closing it tells the NameNode its length."""

    def __init__(self, file: hdfs_native.FileWriter) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        # hdfs-native takes a buffer of pyarrow's number by number, a hundred times more slowly.
        return within_timeout(lambda: self._file.write(bytes(content)))

    def close(self) -> None:
        if not self.closed:
            super().close()
            try:
                within_timeout(self._file.close)
            finally:
                # hdfs-native never takes note of it: Python would close the file once more when it lets go of
                # it, in whatever the program does then, and wait for 15 s where the DataNodes are gone.
                io.RawIOBase.close(self._file)


def _writing(call: Callable[[], hdfs_native.FileWriter]) -> pa.PythonFile:
    return pa.PythonFile(_Writer(within_timeout(call)), mode="w")


def _as_info(found: hdfs_native.FileStatus) -> fs.FileInfo:
    kind = fs.FileType.Directory if found.isdir else fs.FileType.File
    size = None if found.isdir else found.length
    return fs.FileInfo(found.path, kind, size=size, mtime=found.modification_time / 1000)
