"""The file with the key of a sealed federation, which its workers and evaluators share. No cryptography."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fluffle.errors import ConfigError
from fluffle.private_file import require_private, write_new_private
from fluffle.sealed import public_file
from fluffle.sealed.parameters import DEGREE, PRIME, SCALE

FORMAT: Final = "fluffle sealed.secret 1"
_PARAMETERS: Final = {"degree": DEGREE, "prime": PRIME, "scale": SCALE}
_KEY: Final = "secret_key"
# A key takes 62 KiB.
_MOST_BYTES: Final = 1024 * 1024
_PURPOSE: Final = b"fluffle sealed key 1\n"


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """The secret key, as SEAL saves it."""

    secret_key: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """The name of this key: a digest, from which nobody learns the key."""
        return hashlib.sha256(_PURPOSE + self.secret_key).hexdigest()[:32]


def write_secret(path: Path, secret: SealedSecret) -> None:
    """Write a new file for its owner alone. Raises ConfigError when there is one already."""
    encoded = base64.b64encode(secret.secret_key).decode()
    content = {"format": FORMAT, **_PARAMETERS, _KEY: encoded}
    write_new_private(path, json.dumps(content, indent=2).encode() + b"\n")


def read_secret(path: Path) -> SealedSecret:
    """Read the file. Raises ConfigError, without what is in it, when it is another one."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        # Without its cause, which quotes the file.
        found = None
    what = found.get("format") if isinstance(found, dict) else None
    if what == public_file.FORMAT:
        raise ConfigError(
            f"{path} is the public file of a key, for the aggregator, and decrypts nothing: give the "
            "sealed.secret that `fluffle keys sealed` has made with it"
        )
    if what != FORMAT:
        raise ConfigError(
            f"{path} is no secret file of a sealed federation: give the sealed.secret that `fluffle keys "
            "sealed` has made"
        )
    require_private(path)
    for name, expected in _PARAMETERS.items():
        if found.get(name) != expected:
            raise ConfigError(
                f"{path} has a key with another {name} than this Fluffle seals with, {expected!r}: make new "
                "keys with `fluffle keys sealed`, for all workers and evaluators"
            )
    try:
        return SealedSecret(base64.b64decode(found.get(_KEY), validate=True))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: copy it again from who has made it") from error
