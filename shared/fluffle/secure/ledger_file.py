"""The file with a helper's ledger. Without the newest one, a helper might open an update in a second sum."""

from pathlib import Path
from typing import Final

import xxhash

from fluffle.errors import ConfigError, WireError
from fluffle.private_file import PRIVATE, write_new_private
from fluffle.secure.helping import Ledger, decode_ledger, encode_ledger
from fluffle.secure.key_files import HelperKey
from fluffle.whole_file import write_whole

DIGEST_BYTES: Final = 16
WHAT_TO_DO: Final = (
    "without it a helper cannot know which updates it has opened, and opens nothing more in this epoch: "
    "rotate the keys (`fluffle keys rotate`)"
)


def ledger_beside(key: Path) -> Path:
    """Return where the ledger of the helper with this key lies."""
    return key.with_suffix(".ledger")


def write_new_ledger(path: Path, key: HelperKey) -> None:
    """Write the ledger of a new key, in which nothing is opened. Raises ConfigError where one exists."""
    write_new_private(path, _content(Ledger(key.epoch), key))


def write_ledger(path: Path, ledger: Ledger, key: HelperKey) -> None:
    """Write a ledger, and return when it is on the disk. Raises ConfigError when it cannot be."""
    try:
        content = _content(ledger, key)
    except WireError as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
    write_whole(path, [content], mode=PRIVATE)


def read_ledger(path: Path, key: HelperKey) -> Ledger:
    """Read a ledger. Raises ConfigError when it is lost or damaged, or is that of another helper."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"the ledger {path} is lost: {WHAT_TO_DO}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the ledger {path}: {error.strerror}") from error
    body = content[:-DIGEST_BYTES]
    if content[-DIGEST_BYTES:] != _digest(body, key):
        raise ConfigError(f"the ledger {path} is damaged, or not that of {key.name}: {WHAT_TO_DO}")
    try:
        return decode_ledger(body)
    except WireError as error:
        raise ConfigError(f"the ledger {path} cannot be read ({error}): {WHAT_TO_DO}") from error


def _content(ledger: Ledger, key: HelperKey) -> bytes:
    body = encode_ledger(ledger)
    return body + _digest(body, key)


def _digest(body: bytes, key: HelperKey) -> bytes:
    """Return a checksum that detects damage, and a ledger of somebody else; no protection from attackers."""
    return xxhash.xxh3_128(f"{key.federation}/{key.name}/".encode() + body).digest()
