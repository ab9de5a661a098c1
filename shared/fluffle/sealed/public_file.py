"""The file that tells an aggregator which key seals a federation; there is nothing secret in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluffle.errors import ConfigError, FluffleError
from fluffle.fields import Table
from fluffle.sealed.parameters import DEGREE, PRIME, SCALE
from fluffle.sealed.plan import KeyId
from fluffle.whole_file import write_whole

FORMAT: Final = "fluffle sealed.public 1"
_PARAMETERS: Final = {"degree": DEGREE, "prime": PRIME, "scale": SCALE}


@dataclass(frozen=True, slots=True)
class SealedPublic:
    """The id of a key."""

    key: KeyId


_TABLE: Final = Table(SealedPublic)


def write_public(path: Path, public: SealedPublic) -> None:
    """Write the file. Raises ConfigError if that fails."""
    content = {"format": FORMAT, "key": public.key, **_PARAMETERS}
    write_whole(path, [json.dumps(content, indent=2).encode() + b"\n"])


def read_public(path: Path) -> SealedPublic:
    """Read the file. Raises ConfigError when it cannot be read, or is another file."""
    what = (
        "give the sealed.public that `fluffle keys sealed` has made; its sealed.secret is for workers and "
        "evaluators alone"
    )
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no public file of a sealed federation: {what}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(f"{path} is no public file of a sealed federation: {what}")
    for name, expected in _PARAMETERS.items():
        if found.get(name) != expected:
            raise ConfigError(
                f"{path} is for keys with {name} {found.get(name)!r}, and this Fluffle seals with "
                f"{expected!r}: make new keys with `fluffle keys sealed`, for all workers and evaluators"
            )
    try:
        return SealedPublic(**_TABLE.take(found))
    except FluffleError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
