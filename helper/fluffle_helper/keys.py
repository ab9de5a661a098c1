"""The files of a helper as it uses them: read again when the operator replaces them."""

from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.secure.helping import Ledger
from fluffle.secure.key_files import HelperKey, read_operator, read_private
from fluffle.secure.ledger_file import read_ledger, write_ledger
from fluffle.secure.registry import Registry, read_registry
from fluffle_helper.settings import HelperSettings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HelperFiles:
    """Where a helper's key, the registry and the operator's public key lie."""

    key: Path
    registry: Path
    operator: Path

    @classmethod
    def of(cls, settings: HelperSettings) -> "HelperFiles":
        """Return those that the settings name."""
        return cls(settings.secure_key, settings.secure_registry, settings.secure_operator)

    def read(self, federation: str) -> tuple[HelperKey, Registry]:
        """Return key and registry of one epoch. Raises ConfigError when they do not belong together."""
        key = read_private(self.key, HelperKey)
        try:
            text = self.registry.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the registry {self.registry} cannot be read: {error}") from error
        try:
            registry = read_registry(text, read_operator(self.operator))
        except ConfigError as error:
            raise ConfigError(f"{self.registry}: {error}") from error
        for path, found in ((self.key, key.federation), (self.registry, registry.federation)):
            if found != federation:
                raise ConfigError(f"{path} is for the federation {found!r}, and this is {federation!r}")
        if key.epoch != registry.epoch:
            raise ConfigError(
                f"{self.key} is of epoch {key.epoch}, and {self.registry} of epoch {registry.epoch}: get the "
                "newer of both from the operator"
            )
        groups = registry.committee.groups
        for own in key.groups:
            known = groups.index(own.members) if own.members in groups else None
            if known is None or registry.group_keys[known] != own.public:
                raise ConfigError(
                    f"{self.registry} has other keys of the group {', '.join(own.members)} than {self.key}: "
                    "get both from the operator again"
                )
        if {own.members for own in key.groups} != {each for each in groups if key.name in each}:
            raise ConfigError(
                f"{self.key} lacks a key of a group of {key.name!r}: get it from the operator again"
            )
        return key, registry


class Keys:
    """The key, the registry and the ledger of a helper.

    Raises ConfigError when they do not belong together, and when the ledger is lost.
    """

    def __init__(self, files: HelperFiles, federation: str) -> None:
        self._files = files
        self._federation = federation
        self._complaint = ""
        self.key, self.registry = files.read(federation)
        self.ledger = read_ledger(files.key, self.key.epoch)

    def look(self) -> None:
        """Take over files that the operator has replaced; those that do not fit are logged once."""
        try:
            key, registry = self._files.read(self._federation)
            self._require_successor(key)
            ledger = self.ledger if key.epoch == self.key.epoch else read_ledger(self._files.key, key.epoch)
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("the new files are not used", because=str(error))
            return
        self._complaint = ""
        if (key, registry) != (self.key, self.registry):
            self.key, self.registry, self.ledger = key, registry, ledger
            log.info(
                "going on with new files",
                epoch=key.epoch,
                workers=len(registry.workers),
                revoked=len(registry.revoked),
            )

    def _require_successor(self, key: HelperKey) -> None:
        if key.name != self.key.name:
            raise ConfigError(f"{self._files.key} is the key of {key.name!r}, not of {self.key.name!r}")
        if key.epoch < self.key.epoch:
            raise ConfigError(f"{self._files.key} is of epoch {key.epoch}, older than {self.key.epoch}")

    def remember(self, ledger: Ledger) -> None:
        """Write the ledger; it is on the disk when this returns. Raises ConfigError when it cannot be."""
        if ledger != self.ledger:
            write_ledger(self._files.key, ledger)
            self.ledger = ledger
