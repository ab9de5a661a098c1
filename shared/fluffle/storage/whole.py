"""One file as a whole, written or read: a plain path without any library, a URL by `fluffle.storage`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fluffle.errors import ConfigError
from fluffle.storage.location import WRITE_BYTES, locate, write_to


@contextmanager
def written_to(place: str) -> Iterator[Path]:
    """Yield a path to write a file to, which is in `place`, a path or URL, when the block has ended well.

    A file of a URL is written to this machine first, and then copied: a reader of the URL sees the old file
    or the new one. What does not answer, or is a folder, is noticed before the block.
    Raises StorageError and ConfigError as `write_to` does.
    """
    if not is_url(place):
        yield Path(place)
        return
    locate(place).require_no_folder()
    with TemporaryDirectory(prefix="fluffle-") as folder:
        path = Path(folder, place.rpartition("/")[2])
        yield path
        write_to(place, _parts_of(path))


def content_of(place: str | os.PathLike[str]) -> bytes:
    """Return what is in a file. Raises ConfigError for a path, and StorageError for a URL, that has none."""
    text = os.fspath(place)
    if is_url(text):
        location = locate(text)
        with location.open(location.only_file()) as stream:
            return bytes(stream.read())
    try:
        return Path(text).read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {text}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {text}: {error.strerror}") from error


def is_url(place: str) -> bool:
    """Return whether a place is named by a URL and not by a path."""
    return "://" in place


def _parts_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(WRITE_BYTES):
            yield part
