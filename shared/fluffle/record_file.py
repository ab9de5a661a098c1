"""`.fluffle` files: the bytes of a version's record, and their SHA-256 as the last line."""

import hashlib
import os
from pathlib import Path

from fluffle.errors import ConfigError, WireError
from fluffle.model_stream import StoredVersion
from fluffle.record_wire import decode_version
from fluffle.storage import content_of
from fluffle.whole_file import write_whole

_LABEL = b"\nsha256 "
_TRAILER_BYTES = len(_LABEL) + 64 + 1


def write_record(path: Path, body: bytes) -> None:
    """Write the record of a version; a reader of `path` sees the old file or the new one."""
    write_whole(path, [body, _trailer(body)])


def read_record(path: str | os.PathLike[str]) -> StoredVersion:
    """Read the record of a version from a path or URL.

    Raises ConfigError when it is not there or damaged, and StorageError when a URL cannot be read.
    """
    content = content_of(path)
    body, trailer = content[:-_TRAILER_BYTES], content[-_TRAILER_BYTES:]
    if not trailer.startswith(_LABEL):
        raise ConfigError(
            f"{path} is incomplete, or not a file of `fluffle model export --out NAME.fluffle`: its last "
            "line has no sha256"
        )
    # The message's own checksum covers the weights alone, not the ids of the updates in them.
    if trailer != _trailer(body):
        raise ConfigError(f"{path} is damaged: its bytes do not match the sha256 in its last line")
    try:
        return StoredVersion(decode_version(body), body)
    except WireError as error:
        raise ConfigError(f"{path} has no version that this Fluffle can read: {error}") from error


def _trailer(body: bytes) -> bytes:
    return _LABEL + hashlib.sha256(body).hexdigest().encode() + b"\n"
