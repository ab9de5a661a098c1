"""The file with the secret of the noise: one line of 64 hexadecimal digits, which only its owner may read."""

import re
import secrets
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.privacy.noise import SECRET_BYTES, NoiseSecret
from fluffle.private_file import require_private, write_new_private


def write_new_secret(path: Path) -> NoiseSecret:
    """Draw a secret and write it. Raises ConfigError when the file exists, or cannot be written."""
    drawn = secrets.token_bytes(SECRET_BYTES)
    write_new_private(path, f"{drawn.hex()}\n".encode())
    return NoiseSecret(drawn)


def read_secret(path: Path) -> NoiseSecret:
    """Read a secret. Raises ConfigError when the file holds none, or others may read it.

    The error does not say what is in the file.
    """
    require_private(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not re.fullmatch(rb"[0-9a-f]{%d}\r?\n?" % (2 * SECRET_BYTES), content):
        raise ConfigError(
            f"{path} does not hold the secret of the noise, one line of {2 * SECRET_BYTES} hexadecimal "
            "digits: make one with `fluffle privacy secret`, or copy it from the other aggregators"
        )
    return NoiseSecret(bytes.fromhex(content.decode()))
