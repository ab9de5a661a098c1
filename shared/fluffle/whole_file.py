"""Files and folders that exist whole or not at all, even if the process or the machine dies meanwhile."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fluffle.errors import ConfigError


def write_whole(path: Path, parts: Iterable[bytes | memoryview], *, mode: int = 0o666) -> None:
    """Write a file; a reader of `path` sees the old file or the new one. Raises ConfigError if that fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            # Before the rename, or a power cut leaves the new name on an empty file.
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `path`, with all that is in it, when the block ends.

    If the block fails, or the process dies, `path` does not exist. Raises ConfigError when it exists already,
    or cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        # What a process that died has left.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        sync_folder(partial)
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Write to the disk which files a folder has."""
    folder = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems cannot sync a folder.
        with suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)
