"""The registry: who takes part in secure aggregation, and with which public keys, signed by the operator.

The operator is a person who is not the aggregator: an aggregator that could register workers would invent
some, and learn what the one real worker among them has sent. The signature is Ed25519, of the text that
`_signed_bytes` makes of the registry.
"""

import hashlib
import json
from collections import Counter
from typing import Annotated, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fluffle.errors import ConfigError
from fluffle.secure.committee import Committee
from fluffle.settings import FederationName, PartName

PURPOSE: Final = b"fluffle registry 1\n"
KEY_BYTES: Final = 32


def _require_key(text: str) -> str:
    try:
        is_key = len(bytes.fromhex(text)) == KEY_BYTES and text == text.lower()
    except ValueError:
        is_key = False
    if not is_key:
        raise ValueError(f"must be {2 * KEY_BYTES} hexadecimal digits in lower case")
    return text


Key = Annotated[str, AfterValidator(_require_key)]


class Registry(BaseModel):
    """The helpers and workers of one epoch of a federation; keys are X25519 public keys in hexadecimal.

    `group_keys` are those of the groups of helpers, in the order of `Committee.groups`. A worker that is
    `revoked` may no longer take part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: FederationName
    epoch: int = Field(ge=1)
    helpers: tuple[PartName, ...]
    colluding: int
    group_keys: tuple[Key, ...]
    workers: dict[PartName, Key]
    revoked: tuple[PartName, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        groups, keys = self.committee.groups, Counter([*self.group_keys, *self.workers.values()])
        if len(self.group_keys) != len(groups):
            raise ValueError(f"{len(groups)} groups of helpers have {len(self.group_keys)} keys")
        if twice := [key for key, count in keys.items() if count > 1]:
            holders = [name for name, key in self.workers.items() if key in twice]
            raise ValueError(f"one key stands there twice: {', '.join(holders) or 'of two groups'}")
        if both := [name for name in self.revoked if name in self.workers]:
            raise ValueError(f"registered and revoked: {', '.join(both)}")
        return self

    @property
    def committee(self) -> Committee:
        """The helpers and their groups."""
        return Committee(self.helpers, self.colluding)

    @property
    def public_group_keys(self) -> tuple[X25519PublicKey, ...]:
        """The public key of each group."""
        return tuple(X25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in self.group_keys)

    @property
    def keys_digest(self) -> str:
        """The digest of the helpers' keys: all registries of one epoch have the same, if they go together."""
        return hashlib.sha256("".join(self.group_keys).encode()).hexdigest()

    def worker_key(self, name: str) -> X25519PublicKey:
        """Return a worker's public key. Raises ConfigError for one that is revoked, or not registered."""
        if name in self.revoked:
            raise ConfigError(f"the worker {name!r} is revoked in the registry of {self.federation}")
        if name not in self.workers:
            raise ConfigError(
                f"the worker {name!r} is not in the registry of {self.federation}, epoch {self.epoch}: send "
                "its public key to the operator, who adds it with `fluffle keys registry`"
            )
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.workers[name]))


def first_fault(error: ValidationError) -> str:
    """Return where the first fault is and what it is, without the value that was found: it may be secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Text that is no JSON at all has no place.
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


class _Signed(BaseModel):
    """The file of a registry."""

    model_config = ConfigDict(extra="forbid")

    registry: Registry
    signature: str


def signed_registry(registry: Registry, operator: Ed25519PrivateKey) -> str:
    """Return the text of the registry's file."""
    signature = operator.sign(_signed_bytes(registry)).hex()
    return f"{_Signed(registry=registry, signature=signature).model_dump_json(indent=2)}\n"


def read_registry(text: str, operator: Ed25519PublicKey) -> Registry:
    """Read a registry that this operator has signed. Raises ConfigError for any other text."""
    try:
        found = _Signed.model_validate_json(text)
        signature = bytes.fromhex(found.signature)
    except ValidationError as error:
        raise ConfigError(f"this is no registry: {first_fault(error)}") from error
    except ValueError as error:
        raise ConfigError(f"this is no registry: its signature is not hexadecimal: {error}") from error
    try:
        operator.verify(signature, _signed_bytes(found.registry))
    except InvalidSignature as error:
        raise ConfigError(
            "the registry is not signed with this operator's key, or was changed afterwards: ask the "
            "operator for the file again, and compare the operator's public key"
        ) from error
    return found.registry


def _signed_bytes(registry: Registry) -> bytes:
    # Of what was read, not of the text that was read: what is used is what is signed.
    content = json.dumps(registry.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return PURPOSE + content.encode()
