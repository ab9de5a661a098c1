"""A file, a folder or a pattern by its URL: which files there are, and reading and writing them."""

import fnmatch
import importlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluffle.errors import ConfigError, StorageError
from fluffle.storage.errors import explained

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

SCHEMES = ("file", "hdfs", "webhdfs", "s3")
WILD = re.compile(r"[*?\[]")
# Files that programs such as Spark lay beside the data: _SUCCESS, .part-0.crc.
HIDDEN = ("_", ".")
WRITE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it was when it was found. Two that are equal are the same file with the same content.

    `path` is the filesystem's own name of it, and `url` what people read.
    """

    url: str
    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Location:
    """A place on a filesystem; `url` names it for people, without secrets."""

    url: str
    path: str
    filesystem: "FileSystem"

    def files(self) -> list[StoredFile]:
        """Return the files that are meant, in the order of their paths, which is the same on every machine.

        That is the file itself, all files in and below a folder, or those that fit the pattern. Those whose
        name, or whose folder's name, begins with _ or . are left out.
        Raises StorageError when there are none.
        """
        from pyarrow.fs import FileType

        with explained(f"cannot look into {self.url}"):
            info = self._info(self.path)
            if info.type == FileType.File:
                return [self._stored(info)]
            is_pattern = info.type == FileType.NotFound and WILD.search(self.path)
            # Looking into what is not there raises; it tells a missing bucket from a missing folder.
            found = list(self._fitting() if is_pattern else self._below(self.path))
        if not found:
            kind = "fits no file" if is_pattern else "holds no file"
            raise StorageError(f"{self.url} {kind}: correct the path, or put the data there first")
        return sorted((self._stored(each) for each in found), key=lambda file: file.path)

    @contextmanager
    def open(self, file: StoredFile) -> Iterator["pa.NativeFile"]:
        """Open one of the files for reading at any place. What fails in the block is a StorageError too."""
        with explained(f"cannot read {file.url}"), self.filesystem.open_input_file(file.path) as stream:
            yield stream

    def now(self, file: StoredFile) -> StoredFile | None:
        """Return what the file is now: None when it is gone. Raises StorageError."""
        from pyarrow.fs import FileType

        with explained(f"cannot look at {file.url}"):
            info = self._info(file.path)
            return self._stored(info) if info.type == FileType.File else None

    def exists(self) -> bool:
        """Return whether there is a file or folder of this name. Raises StorageError."""
        from pyarrow.fs import FileType

        with explained(f"cannot look at {self.url}"):
            return bool(self._info(self.path).type != FileType.NotFound)

    def only_file(self) -> StoredFile:
        """Return the one file that is meant. Raises StorageError when there are several, or none."""
        found = self.files()
        if len(found) > 1:
            raise StorageError(f"{self.url} means {len(found)} files, and one is expected: name it")
        return found[0]

    def require_no_folder(self) -> None:
        """Raise StorageError when a folder is there, which a file would replace or stand beside."""
        from pyarrow.fs import FileType

        with explained(f"cannot write {self.url}"):
            if self._info(self.path).type == FileType.Directory:
                raise IsADirectoryError(self.path)

    def _info(self, path: str) -> Any:
        [info] = self.filesystem.get_file_info([path])
        return info

    def _stored(self, info: Any) -> StoredFile:
        url = self.url if info.path == self.path else self._url_of(info.path)
        return StoredFile(url, info.path, int(info.size), int(info.mtime_ns or 0))

    def _url_of(self, path: str) -> str:
        scheme, separator, rest = self.url.partition("://")
        if not separator:
            return path
        authority = "" if scheme in ("file", "s3") else rest.partition("/")[0]
        return f"{scheme}://{authority}{path}"

    def _below(self, folder: str) -> Iterator[Any]:
        from pyarrow.fs import FileSelector, FileType

        for each in self.filesystem.get_file_info(FileSelector(folder, recursive=True)):
            inside = each.path[len(folder) :].strip("/").split("/")
            if each.type == FileType.File and not any(part.startswith(HIDDEN) for part in inside):
                yield each

    def _fitting(self) -> Iterator[Any]:
        """Yield the files that fit the pattern, and those below folders that fit it."""
        from pyarrow.fs import FileType

        parts = self.path.split("/")
        first = next(at for at, part in enumerate(parts) if WILD.search(part))
        folders, last = ["/".join(parts[:first]) or "/"], len(parts) - 1
        for at in range(first, len(parts)):
            entries = [each for folder in folders for each in self._entries(folder, parts[at])]
            folders = [each.path for each in entries if each.type == FileType.Directory]
            if at == last:
                yield from (each for each in entries if each.type == FileType.File)
        for folder in folders:
            yield from self._below(folder)

    def _entries(self, folder: str, pattern: str) -> Iterator[Any]:
        from pyarrow.fs import FileSelector

        for each in self.filesystem.get_file_info(FileSelector(folder)):
            is_hidden = each.base_name.startswith(HIDDEN) and not pattern.startswith(HIDDEN)
            if fnmatch.fnmatchcase(each.base_name, pattern) and not is_hidden:
                yield each


def locate(url: str | os.PathLike[str]) -> Location:
    """Return the place that a URL or a plain path names; nothing is looked up there yet.

    Raises ConfigError for a URL that cannot be meant, and for a library that is not installed.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _local(text, text)
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise ConfigError(f"unknown kind of URL {shown(text)}: known are {known} and plain paths")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise ConfigError(
            f"the URL {shown(text)} has a user or a password before the @, which every log and list of "
            "processes would show: leave it out, and log in as docs/data.md says"
        )
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise ConfigError(
                f"{text} names the host {authority!r}: write file:///{path}, with three slashes"
            )
        return _local(text, f"/{path}")
    if not authority:
        what = "bucket" if scheme == "s3" else "host"
        raise ConfigError(f"{text} names no {what}: write {scheme}://{what.upper()}/path")
    if scheme == "s3":
        from_store = _library("pyarrow", "fluffle.storage.s3", "s3_filesystem")
        with explained(f"cannot open {text}"):
            return Location(text, f"{authority}/{path}".rstrip("/"), from_store(authority))
    host, port = _host_and_port(text, authority)
    module, name = {
        "hdfs": ("fluffle.storage.hdfs", "hdfs_filesystem"),
        "webhdfs": ("fluffle.storage.web_hdfs", "web_hdfs_filesystem"),
    }[scheme]
    of_cluster = _library(scheme, module, name)
    with explained(f"cannot open {text}"):
        return Location(text, f"/{path.rstrip('/')}", of_cluster(host, port))


def shown(url: str) -> str:
    """Return a URL as it may stand in a log: without a user, a password, and what follows a question mark."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    if not separator or "@" not in authority:
        return url
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


@contextmanager
def _partial(location: Location) -> Iterator[str]:
    """Yield the name of a new file beside this one, and rename it when the block has ended well."""
    folder, slash, name = location.path.rpartition("/")
    partial = f"{folder}{slash}.{name}.{secrets.token_hex(4)}.part"
    try:
        yield partial
        location.filesystem.move(partial, location.path)
    except BaseException:
        with suppress(Exception):
            location.filesystem.delete_file(partial)
        raise


def write_to(url: str | os.PathLike[str], parts: Iterable[bytes | memoryview]) -> None:
    """Write a file, whose folder is made where it is missing; readers see the old file or the new one.

    Raises StorageError when that fails, and ConfigError as `locate` does.
    """
    location = locate(url)
    location.require_no_folder()
    with explained(f"cannot write {location.url}"):
        # An object store has no folders, and to make one takes rights that writing does not need.
        if not location.url.startswith("s3://"):
            location.filesystem.create_dir(location.path.rpartition("/")[0] or "/", recursive=True)
        with _partial(location) as partial, location.filesystem.open_output_stream(partial) as stream:
            for part in parts:
                view = memoryview(part).cast("B")
                for begin in range(0, len(view), WRITE_BYTES):
                    stream.write(view[begin : begin + WRITE_BYTES])


def _local(url: str, path: str) -> Location:
    filesystem = _library("pyarrow", "pyarrow.fs", "LocalFileSystem")
    return Location(url, Path(path).absolute().as_posix(), filesystem())


def _host_and_port(url: str, authority: str) -> tuple[str, int | None]:
    host, separator, port = authority.partition(":")
    if not separator:
        return host, None
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{url} has the port {port!r}: a port is a number from 1 to 65535")
    return host, int(port)


def _library(what: str, module: str, name: str) -> Callable[..., Any]:
    """Return a function from a module whose libraries may be missing. Raises ConfigError where they are."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            f"files by {what} need a library that is not installed: pip install 'fluffle[storage]' ({error})"
        ) from error
    return found
