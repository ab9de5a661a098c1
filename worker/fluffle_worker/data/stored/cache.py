"""Copies of remote files on a local disk: bounded, with checksums, for all processes of a machine."""

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.storage import StoredFile

log = get_logger(__name__)

COPY_BYTES = 8 << 20
# Processes that fetch different files rarely wait for each other.
LOCKS = 64
# A part that nobody has written to for so long was left by a process that died.
PART_S = 3600
COPY, PART = ".copy", ".part"

Open = Callable[[StoredFile], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """A folder for copies of files at `hdfs://`, `webhdfs://` and `s3://`, which are then read from there.

    Where a new copy would make it larger than `max_bytes`, those go that have not been used for longest. A
    file larger than that is read where it lies. Several processes may use one folder.
    """

    folder: str | os.PathLike[str]
    max_bytes: int = 20_000_000_000
    _checked: set[tuple[str, int, int]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        """Make the folder. Raises ConfigError when that fails."""
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes of a cache must be at least 1, not {self.max_bytes}")
        with self._explained():
            self._path.mkdir(parents=True, exist_ok=True)

    def holds(self, file: StoredFile) -> bool:
        """Return whether a file is small enough to be copied."""
        return file.size_bytes <= self.max_bytes

    def copy_of(self, file: StoredFile, opened: Open) -> int:
        """Return a file descriptor of the local copy, which `opened` fetches where there is none yet.

        It can be read even after another process has removed the copy. Raises ConfigError when the folder
        cannot be written, and what reading the file raises.
        """
        key = xxhash.xxh3_128_hexdigest(f"{file.url} {file.size_bytes} {file.modified_ns}".encode())
        with self._lock(f"{int(key, 16) % LOCKS:02}.lock"):
            found = self._intact(file, key)
            return self._fetch(file, key, opened) if found is None else found

    def _intact(self, file: StoredFile, key: str) -> int | None:
        """Return a descriptor of the copy if it has its checksum; None if there is none, or it is damaged."""
        for path in self._path.glob(f"{key}-*{COPY}"):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                identity = _identity(path, descriptor)
                if identity in self._checked or _checksum(descriptor) == path.stem.partition("-")[2]:
                    self._checked.add(identity)
                    # When it was last used; the time of its modification stays.
                    os.utime(path, ns=(time.time_ns(), identity[2]))
                    return descriptor
                os.close(descriptor)
                path.unlink(missing_ok=True)
                log.warning("a copy in the cache is damaged, and is fetched again", file=file.url)
        return None

    def _fetch(self, file: StoredFile, key: str, opened: Open) -> int:
        part = self._path / f"{key}-{secrets.token_hex(4)}{PART}"
        try:
            with opened(file) as source:
                return self._written(source, file, key, part)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _written(self, source: Any, file: StoredFile, key: str, part: Path) -> int:
        """Copy a file, and give the copy its name when it is whole."""
        checksum = xxhash.xxh3_128()
        with self._explained():
            self._make_room(file.size_bytes)
            # Nobody else on this machine need read what a site's data are.
            target = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # So that other processes count it with its whole size.
            with self._explained():
                os.truncate(target, file.size_bytes)
            while piece := source.read(COPY_BYTES):
                checksum.update(piece)
                with self._explained():
                    _write_all(target, piece)
            whole = self._path / f"{key}-{checksum.hexdigest()}{COPY}"
            part.rename(whole)
            self._checked.add(_identity(whole, target))
        except BaseException:
            # While it is open, a part that has been removed still takes room on the disk.
            os.close(target)
            raise
        return target

    def _make_room(self, size_bytes: int) -> None:
        """Remove what was not used for longest, and parts that a process has left which died."""
        found = []
        for path in self._path.glob("*"):
            with suppress(FileNotFoundError):
                facts = path.stat()
                found.append((facts.st_atime_ns, path, facts.st_size))
                if path.suffix == PART and facts.st_mtime < time.time() - PART_S:
                    path.unlink()
        used = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if used + size_bytes <= self.max_bytes:
                break
            if path.suffix == COPY:
                path.unlink(missing_ok=True)
                used -= size

    @property
    def _path(self) -> Path:
        return Path(self.folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(f"cannot write to the cache folder {self.folder}: {error.strerror}") from error

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with self._explained():
            descriptor = os.open(self._path / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, piece: bytes) -> None:
    """Write a piece, or raise OSError: on a disk that is nearly full, the system writes only a part of it."""
    left = memoryview(piece)
    while left:
        left = left[os.write(descriptor, left) :]


def _identity(path: Path, descriptor: int) -> tuple[str, int, int]:
    facts = os.fstat(descriptor)
    return path.name, facts.st_ino, facts.st_mtime_ns


def _checksum(descriptor: int) -> str:
    checksum = xxhash.xxh3_128()
    at = 0
    while piece := os.pread(descriptor, COPY_BYTES, at):
        checksum.update(piece)
        at += len(piece)
    return str(checksum.hexdigest())
