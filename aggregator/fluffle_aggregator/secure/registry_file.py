"""The registry as a leader uses it: read again when its file changes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError, ConnectionLost
from fluffle.logs import get_logger
from fluffle.secure.key_files import read_operator
from fluffle.secure.registry import Registry, read_registry

log = get_logger(__name__)

LOOK_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class RegistryFiles:
    """Where the registry and the operator's public key lie."""

    registry: Path
    operator: Path

    def read(self) -> Registry:
        """Return the registry. Raises ConfigError unless it can be read, and the operator has signed it."""
        try:
            text = self.registry.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the registry {self.registry} cannot be read: {error}") from error
        try:
            return read_registry(text, read_operator(self.operator))
        except ConfigError as error:
            raise ConfigError(f"{self.registry}: {error}") from error


class RegistryWatch:
    """Notices that the operator has put another registry in place of the one in use."""

    def __init__(
        self, files: RegistryFiles, federation: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the registry. Raises ConfigError when it is not for this federation."""
        self._files = files
        self._federation = federation
        self._clock = clock
        self._looked_at = clock()
        self._complaint = ""
        self.registry = self._read()

    def _read(self) -> Registry:
        found = self._files.read()
        if found.federation != self._federation:
            raise ConfigError(
                f"{self._files.registry} is for the federation {found.federation!r}, and this one is "
                f"{self._federation!r}"
            )
        return found

    def _complain(self, because: str) -> None:
        if because != self._complaint:
            self._complaint = because
            log.warning("the new registry is not used", because=because)

    def look(self) -> None:
        """Raise ConnectionLost when the registry has changed: then the leader begins again from the head.

        A file that is no registry is logged once, and the one in use stays.
        """
        if self._clock() < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        try:
            found = self._read()
        except ConfigError as error:
            self._complain(str(error))
            return
        if found.epoch < self.registry.epoch:
            self._complain(f"it is of epoch {found.epoch}, and the one in use is of {self.registry.epoch}")
            return
        self._complaint = ""
        if found == self.registry:
            return
        self.registry = found
        raise ConnectionLost(
            f"the registry has changed: beginning again from the newest version, with epoch {found.epoch}, "
            f"{len(found.workers)} workers and {len(found.revoked)} revoked ones"
        )
