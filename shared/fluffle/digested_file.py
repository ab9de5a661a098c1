"""Files with a digest at their end, so that damage, a cut or another name is noticed."""

import os
from pathlib import Path

import xxhash

from fluffle.whole_file import write_whole

DIGEST_BYTES = 16


class Damaged(Exception):
    """A file cannot be read, or does not hold what was written."""


def write_digested(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that exists as a whole or not at all; ConfigError when it cannot be written."""
    write_whole(path, [*parts, _digest(path, *parts)], mode=0o600)


def read_digested(path: Path) -> bytes:
    """Return what `write_digested` wrote; raises Damaged when the file has changed or cannot be read."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size - DIGEST_BYTES
            body = file.read(max(0, size_bytes))
            digest = file.read()
    except OSError as error:
        raise Damaged(str(error)) from error
    if size_bytes < 0 or digest != _digest(path, body):
        raise Damaged(f"its {len(body)} bytes do not match their digest")
    return body


def _digest(path: Path, *parts: bytes | memoryview) -> bytes:
    """Return a checksum that detects damaged, shortened or renamed files; no protection from attackers."""
    running = xxhash.xxh3_128(path.stem.encode())
    for part in parts:
        running.update(part)
    return running.digest()
