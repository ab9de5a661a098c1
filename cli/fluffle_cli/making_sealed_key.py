"""Makes the key of a sealed federation; what it returns is for people."""

from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.sealed.public_file import SealedPublic, write_public
from fluffle.sealed.secret_file import SealedSecret, read_secret, write_secret

SECRET, PUBLIC = "sealed.secret", "sealed.public"


def make_key(folder: Path) -> str:
    """Make the key in a folder; go on if an earlier call was killed before the public file."""
    secret, public = folder / SECRET, folder / PUBLIC
    if secret.exists() and not public.exists():
        key = read_secret(secret)
    else:
        key = _new_key()
        write_secret(secret, key)
    write_public(public, SealedPublic(key.key_id))
    return (
        f"made {secret} for the workers and evaluators, and {public} for the aggregator: the key {key.key_id}"
    )


def _new_key() -> SealedSecret:
    try:
        # It loads SEAL, which most installations do without.
        from fluffle.sealed.keys import new_secret
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`fluffle keys sealed` needs TenSEAL: pip install 'fluffle[sealed]' ({error})"
        ) from error
    return new_secret()
