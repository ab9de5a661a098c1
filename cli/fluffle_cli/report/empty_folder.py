"""A folder for a new run."""

from __future__ import annotations

from pathlib import Path

from fluffle.errors import ConfigError


def make_empty_folder(folder: Path, *, given_as: str = "") -> Path:
    """Make a folder and return it; ConfigError when it has something in it already, or cannot be made.

    `given_as` is the option that named it, with a space behind, for the error.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{given_as}{folder} is not empty: choose another folder, or delete this one")
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder
