"""Files with the keys of secure aggregation, private and public ones."""

from pathlib import Path
from typing import Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fluffle.errors import ConfigError
from fluffle.private_file import require_private, write_new_private
from fluffle.secure.committee import Committee
from fluffle.secure.registry import Key, first_fault
from fluffle.settings import FederationName, PartName
from fluffle.whole_file import write_whole


class OperatorKey(BaseModel):
    """The Ed25519 key that the operator signs registries with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["operator"] = "operator"
    private_key: Key = Field(repr=False)

    @classmethod
    def new(cls) -> "OperatorKey":
        """Return a new key."""
        return cls(private_key=Ed25519PrivateKey.generate().private_bytes_raw().hex())

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key itself."""
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.private_key))


class WorkerKey(BaseModel):
    """A worker's X25519 key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["worker"] = "worker"
    federation: FederationName
    name: PartName
    private_key: Key = Field(repr=False)

    @classmethod
    def new(cls, federation: str, name: str) -> "WorkerKey":
        """Return a new key."""
        return cls(federation=federation, name=name, private_key=_new_key())

    @property
    def private(self) -> X25519PrivateKey:
        """The key itself."""
        return _key(self.private_key)


class GroupKey(BaseModel):
    """The X25519 key that all members of a group of helpers have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[PartName, ...]
    private_key: Key = Field(repr=False)

    @classmethod
    def new(cls, members: tuple[str, ...]) -> "GroupKey":
        """Return a new key."""
        return cls(members=members, private_key=_new_key())

    @property
    def private(self) -> X25519PrivateKey:
        """The key itself."""
        return _key(self.private_key)

    @property
    def public(self) -> str:
        """The public part, in hexadecimal."""
        return public_part(self.private)


class HelperKey(BaseModel):
    """The keys of the groups that one helper is in, of one epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["helper"] = "helper"
    federation: FederationName
    epoch: int = Field(ge=1)
    name: PartName
    groups: tuple[GroupKey, ...]


class WorkerPublicKey(BaseModel):
    """What a worker sends to the operator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["worker, public"] = "worker, public"
    federation: FederationName
    name: PartName
    public_key: Key

    @classmethod
    def of(cls, key: WorkerKey) -> "WorkerPublicKey":
        """Return the public part of a worker's key."""
        return cls(federation=key.federation, name=key.name, public_key=public_part(key.private))


class HelperGroups(BaseModel):
    """The helpers of one epoch, and the public keys of their groups, in the order of `Committee.groups`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["helpers, public"] = "helpers, public"
    federation: FederationName
    epoch: int = Field(ge=1)
    helpers: tuple[PartName, ...]
    colluding: int
    group_keys: tuple[Key, ...]


F = TypeVar("F", bound=BaseModel)


def new_helper_keys(
    federation: str, epoch: int, committee: Committee
) -> tuple[HelperGroups, list[HelperKey]]:
    """Return new keys for the groups of a committee: the public part, and what each helper gets."""
    groups = [GroupKey.new(members) for members in committee.groups]
    public = HelperGroups(
        federation=federation,
        epoch=epoch,
        helpers=committee.helpers,
        colluding=committee.colluding,
        group_keys=tuple(public_part(each.private) for each in groups),
    )
    of_helpers = [
        HelperKey(
            federation=federation,
            epoch=epoch,
            name=helper,
            groups=tuple(each for each in groups if helper in each.members),
        )
        for helper in committee.helpers
    ]
    return public, of_helpers


def public_part(private: X25519PrivateKey) -> str:
    """Return the public part of a key in hexadecimal."""
    return private.public_key().public_bytes_raw().hex()


def write_public(path: Path, content: BaseModel) -> None:
    """Write a file that holds no secret, in place of the one before. Raises ConfigError if that fails."""
    write_whole(path, [f"{content.model_dump_json(indent=2)}\n".encode()])


def write_new(path: Path, content: BaseModel) -> None:
    """Write a private file that must not exist yet. Raises ConfigError when it does, or cannot be written."""
    write_new_private(path, f"{content.model_dump_json(indent=2)}\n".encode())


def read_private(path: Path, kind: type[F]) -> F:
    """Read a file with a private key. Raises ConfigError also when others may read it."""
    require_private(path)
    return read_file(path, kind)


def read_file(path: Path, kind: type[F]) -> F:
    """Read a file of keys. Raises ConfigError, without what is in the file, when it is none of this kind."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        expected = " ".join(str(kind.model_fields["kind"].default).split(", ")[::-1])
        raise ConfigError(f"{path} is no {expected} key: {first_fault(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no file of keys: it is no text") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def read_operator(path: Path) -> Ed25519PublicKey:
    """Read the file with the operator's public key. Raises ConfigError when it holds none."""
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} does not hold the operator's public key, 64 hexadecimal digits: copy operator.pub again"
        ) from error


def _new_key() -> str:
    return X25519PrivateKey.generate().private_bytes_raw().hex()


def _key(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))
