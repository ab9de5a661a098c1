"""The file in which a helper remembers what it has opened: on the disk before it answers."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluffle.digested_file import Damaged, read_digested, write_digested
from fluffle.errors import ConfigError, WireError
from fluffle.secure.helping import Ledger, decode_ledger, encode_ledger

LOST = (
    "with another one it could open an update twice, so it opens nothing. Rotate the keys (`fluffle keys "
    "rotate`), or put back the ledger itself if it was only moved: never an older copy of it"
)


def ledger_path(key: Path, epoch: int) -> Path:
    """Return where the ledger of an epoch lies: beside the helper's key."""
    return key.with_name(f"{key.stem}-{epoch}.ledger")


def make_ledger(key: Path, epoch: int) -> None:
    """Write the empty ledger of new keys. Raises ConfigError if there is one already."""
    path = ledger_path(key, epoch)
    if path.exists():
        raise ConfigError(f"{path} exists, and no ledger is ever begun anew: move it away first")
    write_digested(path, encode_ledger(Ledger(epoch)))


def read_ledger(key: Path, epoch: int) -> Ledger:
    """Return the ledger that belongs to a key. Raises ConfigError when it is lost or damaged."""
    path = ledger_path(key, epoch)
    try:
        found = decode_ledger(read_digested(path))
    except (Damaged, WireError) as error:
        what = "damaged" if path.exists() else "lost"
        raise ConfigError(f"the ledger of this helper is {what} ({path}: {error}): {LOST}") from error
    if found.epoch != epoch:
        raise ConfigError(f"{path} is the ledger of epoch {found.epoch}: {LOST}")
    return found


def write_ledger(key: Path, ledger: Ledger) -> None:
    """Replace the ledger; it is on the disk when this returns. Raises ConfigError when it cannot be."""
    write_digested(ledger_path(key, ledger.epoch), encode_ledger(ledger))


@contextmanager
def holding(key: Path) -> Iterator[None]:
    """Let no other process on this machine use the ledgers beside a key. Raises ConfigError if one does."""
    path = key.with_name(f"{key.stem}.lock")
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the ledger beside {key} cannot be written ({error.strerror}): let this user write there"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process uses the ledger beside {key} ({error.strerror}): this helper runs already"
            ) from error
        yield
    finally:
        os.close(lock)
