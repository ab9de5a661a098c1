"""The keys and secrets of a demo, made as an operator, the helpers and the workers make them."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HELPERS: Final = ("helper-1", "helper-2", "helper-3")


@dataclass(frozen=True, slots=True)
class Keys:
    """The folder with all keys of a demo; in a real federation each part has its own."""

    folder: Path

    @property
    def public(self) -> dict[str, object]:
        """The settings that everybody has: registry and operator."""
        return {
            "secure_registry": self.folder / "registry.json",
            "secure_operator": self.folder / "operator.pub",
        }

    def of(self, worker: str) -> dict[str, object]:
        """Return the settings of a worker."""
        return {"secure_key": self.folder / "workers" / f"{worker}.key", **self.public}

    def of_helper(self, name: str) -> dict[str, object]:
        """Return the settings of a helper."""
        return {"secure_key": self.folder / "epoch-1" / f"{name}.key", **self.public}

    def make(self, federation: str, workers: Iterable[str]) -> None:
        """Make all keys, and sign the registry."""
        # Only here: the library of ciphers takes long to load.
        from fluffle_cli import making_keys

        making_keys.make_operator(self.folder)
        making_keys.make_helpers(self.folder, HELPERS, federation, 1)
        place = self.folder / "workers"
        publics = []
        for name in workers:
            making_keys.make_worker(place, name, federation)
            publics.append(place / f"{name}.pub")
        making_keys.sign(self.folder, publics, [])

    def delete(self) -> None:
        """Delete all keys: with them, what was masked in this demo could be read."""
        shutil.rmtree(self.folder, ignore_errors=True)


def make_noise_secret(path: Path) -> None:
    """Make the secret of the noise of differential privacy."""
    # Only here: the library of ciphers takes long to load.
    from fluffle.privacy.secret_file import write_new_secret

    write_new_secret(path)
