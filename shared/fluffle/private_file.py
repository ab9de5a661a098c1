"""Files with secrets: only their owner may read them, and none is ever overwritten."""

import os
import stat
from pathlib import Path
from typing import Final

from fluffle.errors import ConfigError
from fluffle.whole_file import sync_folder

PRIVATE: Final = 0o600


def write_new_private(path: Path, content: bytes) -> None:
    """Write a private file that must not exist yet. Raises ConfigError when it does, or cannot be written."""
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists, and secrets are never overwritten: move it away first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whatever has come meanwhile is not overwritten either.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def require_private(path: Path) -> None:
    """Raise ConfigError when others than its owner may read a file, or it cannot be read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path} is a folder: give the file with the secret")
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"others may read the secret in {path}: chmod 600 {path}")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
