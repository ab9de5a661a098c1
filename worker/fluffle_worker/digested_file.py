"""The spool's files, written as a whole or not at all, with a digest at their end."""

import os
from contextlib import suppress
from pathlib import Path

import xxhash

from fluffle.whole_file import write_and_rename

DIGEST_BYTES = 16


class Damaged(Exception):
    """A file of the spool does not hold what was written."""


def _digest(name: str, *parts: bytes | memoryview) -> bytes:
    """Return a checksum that detects damaged, shortened or renamed files; no protection from attackers."""
    running = xxhash.xxh3_128(name.encode())
    for part in parts:
        running.update(part)
    return running.digest()


def write_digested(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that exists as a whole or not at all, even after a power cut."""
    write_and_rename(path.with_suffix(".part"), path, [*parts, _digest(path.stem, *parts)], mode=0o600)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_digested(path: Path) -> bytes:
    """Return the message that was written; raises Damaged when the file has changed."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size - DIGEST_BYTES
        body = file.read(max(0, size_bytes))
        if size_bytes < 0 or file.read() != _digest(path.stem, body):
            raise Damaged(f"its {len(body)} bytes do not match their digest")
    return body


def remove(path: Path) -> None:
    """Remove a file if it exists and can be removed."""
    with suppress(OSError):
        path.unlink()
