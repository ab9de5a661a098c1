"""The files of a helper on its disk, which the operator may replace while it runs.

NAME.key        its private keys of one epoch
NAME.ledger     which updates it has opened in that epoch
NAME.lock       held by the one process that uses them
registry.json   who takes part, signed by the operator
operator.pub    the operator's public key
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.secure.helping import Ledger
from fluffle.secure.key_files import HelperKey, public_part, read_operator, read_private
from fluffle.secure.ledger_file import ledger_beside, read_ledger, write_ledger
from fluffle.secure.registry import Registry, read_registry

# What changes when a file is written or replaced, None where there is none. It is only compared for
# equality: a clock that jumps does not matter.
Stamp = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """What the files of a helper say; all is of one epoch and one federation."""

    key: HelperKey
    registry: Registry
    ledger: Ledger


class HelperFiles:
    """Reads the files of a helper, and writes its ledger."""

    def __init__(self, *, key: Path, registry: Path, operator: Path, federation: str) -> None:
        self.ledger_path = ledger_beside(key)
        self._key, self._registry, self._operator = key, registry, operator
        self._federation = federation
        self._seen: dict[Path, Stamp] = {}
        self._name = ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process use these files while the block lasts. Raises ConfigError when one does."""
        path = self._key.with_suffix(".lock")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the folder {path.parent} cannot be used ({error.strerror}): the key and the ledger of a "
                "helper must lie where it may write"
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"another process uses {self.ledger_path} ({error.strerror}): is this helper running "
                    "already?"
                ) from error
            yield
        finally:
            os.close(lock)

    def read(self) -> OwnFiles:
        """Read all files. Raises ConfigError when one is missing or damaged, or does not fit the others."""
        # Before they are read: what is written meanwhile counts as a change.
        paths = (self._key, self._registry, self._operator, self.ledger_path)
        self._seen = {path: _stamp_of(path) for path in paths}
        key = read_private(self._key, HelperKey)
        if key.federation != self._federation:
            raise ConfigError(
                f"{self._key} is a key for the federation {key.federation}, and this helper is started for "
                f"{self._federation}: give --federation {key.federation}, or another --secure-key"
            )
        if self._name not in {"", key.name}:
            raise ConfigError(f"{self._key} is now the key of {key.name}, and was that of {self._name}")
        registry = self._read_registry(key)
        ledger = read_ledger(self.ledger_path, key)
        if ledger.epoch != key.epoch:
            raise ConfigError(
                f"{self.ledger_path} is of epoch {ledger.epoch}, and {self._key} of epoch {key.epoch}: put "
                "the key and the ledger of one epoch there, as `fluffle keys` made them"
            )
        self._name = key.name
        return OwnFiles(key, registry, ledger)

    def have_changed(self) -> bool:
        """Tell whether a file is another one than it was when they were read."""
        return any(_stamp_of(path) != stamp for path, stamp in self._seen.items())

    def save(self, ledger: Ledger, key: HelperKey) -> None:
        """Write the ledger, and return when it is on the disk. Raises ConfigError when it cannot be."""
        write_ledger(self.ledger_path, ledger, key)
        self._seen[self.ledger_path] = _stamp_of(self.ledger_path)

    def _read_registry(self, key: HelperKey) -> Registry:
        try:
            text = self._registry.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the registry {self._registry}: {error}") from error
        try:
            registry = read_registry(text, read_operator(self._operator))
        except ConfigError as error:
            raise ConfigError(f"{self._registry}: {error}") from error
        if (registry.federation, registry.epoch) != (key.federation, key.epoch):
            raise ConfigError(
                f"{self._registry} is of {registry.federation}, epoch {registry.epoch}, and {self._key} of "
                f"{key.federation}, epoch {key.epoch}: ask the operator for the file that is missing"
            )
        groups = dict(zip(registry.committee.groups, registry.group_keys, strict=True))
        expected = {members: public for members, public in groups.items() if key.name in members}
        if not expected or expected != {own.members: public_part(own.private) for own in key.groups}:
            raise ConfigError(
                f"{self._key} has other keys than {self._registry} says of {key.name}: ask the operator for "
                "both files again"
            )
        return registry


def _stamp_of(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
