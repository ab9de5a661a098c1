"""Files that exist whole or not at all, even if the process or the machine dies while they are written."""

import os
from collections.abc import Iterable
from contextlib import suppress
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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # Some network file systems cannot sync a folder.
            with suppress(OSError):
                os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
