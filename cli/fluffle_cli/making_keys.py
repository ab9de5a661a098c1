"""Makes the keys of secure aggregation and the registry of who takes part; what it returns is for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fluffle.errors import ConfigError
from fluffle.rights import require_federation_name
from fluffle.secure.committee import Committee
from fluffle.secure.key_files import (
    HelperGroups,
    OperatorKey,
    WorkerKey,
    WorkerPublicKey,
    new_helper_keys,
    read_file,
    read_operator,
    read_private,
    write_new,
    write_public,
)
from fluffle.secure.ledger_file import ledger_beside, write_new_ledger
from fluffle.secure.registry import Registry, read_registry, signed_registry
from fluffle.settings import require_name
from fluffle.whole_file import write_whole
from fluffle_cli.words import count, in_a_row

OPERATOR_KEY: Final = "operator.key"
OPERATOR_PUBLIC: Final = "operator.pub"
REGISTRY: Final = "registry.json"
GROUPS: Final = "groups.json"


def make_operator(folder: Path) -> str:
    """Make the operator's key in a folder."""
    key = OperatorKey.new()
    write_new(folder / OPERATOR_KEY, key)
    public = key.private.public_key().public_bytes_raw().hex()
    write_whole(folder / OPERATOR_PUBLIC, [f"{public}\n".encode()])
    return f"made {folder / OPERATOR_KEY} and {folder / OPERATOR_PUBLIC}: {public}"


def make_helpers(folder: Path, names: Sequence[str], federation: str, colluding: int) -> str:
    """Make the keys of helpers for a new epoch. Raises ConfigError for helpers that cannot be."""
    epoch = max(_epochs(folder), default=0) + 1
    try:
        committee = Committee(tuple(require_name(name) for name in names), colluding)
        require_federation_name(federation)
    except ValueError as error:
        raise ConfigError(f"these helpers cannot be: {error}") from error
    _, said = _write_helpers(folder, epoch, federation, committee)
    return said


def make_worker(folder: Path, name: str, federation: str) -> str:
    """Make a worker's key. Raises ConfigError for a name that no worker can have."""
    try:
        key = WorkerKey.new(require_federation_name(federation), require_name(name))
    except ValueError as error:
        raise ConfigError(f"this worker cannot be: {error}") from error
    write_new(folder / f"{name}.key", key)
    write_public(folder / f"{name}.pub", WorkerPublicKey.of(key))
    return f"made {folder / name}.key, and {folder / name}.pub for the operator"


def sign(folder: Path, workers: Sequence[Path], revoke: Sequence[str]) -> str:
    """Sign the registry of the newest epoch, with the workers of the one before and those in these files.

    Raises ConfigError for workers of another federation, for revoked ones that come back, and for unknown
    ones that are to be revoked.
    """
    operator, groups = read_private(folder / OPERATOR_KEY, OperatorKey), _newest_groups(folder)
    before = _registry_before(folder)
    known = dict(before.workers) if before else {}
    revoked = {*(before.revoked if before else ()), *revoke}
    for each in (read_file(path, WorkerPublicKey) for path in workers):
        if each.federation != groups.federation:
            raise ConfigError(
                f"{each.name}'s key is for the federation {each.federation}, and the helpers are for "
                f"{groups.federation}"
            )
        if each.name in revoked:
            raise ConfigError(f"the worker {each.name} is revoked: let it take another name")
        known[each.name] = each.public_key
    for name in revoke:
        if name not in known and not (before and name in before.revoked):
            raise ConfigError(
                f"there is no worker {name!r} to revoke: registered are {in_a_row(sorted(known)) or 'none'}"
            )
    registry = Registry(
        federation=groups.federation,
        epoch=groups.epoch,
        helpers=groups.helpers,
        colluding=groups.colluding,
        group_keys=groups.group_keys,
        workers={name: known[name] for name in sorted(known) if name not in revoked},
        revoked=tuple(sorted(revoked)),
    )
    return _write_registry(folder, registry, operator)


def rotate_keys(folder: Path) -> str:
    """Make the same helpers new keys, and sign the registry with them. Raises ConfigError without one."""
    operator, before = read_private(folder / OPERATOR_KEY, OperatorKey), _registry_before(folder)
    if before is None:
        raise ConfigError(f"there is no {folder / REGISTRY} yet: sign one with `fluffle keys registry`")
    epoch = max(_epochs(folder)) + 1
    # What is left here of the epoch before would open what its helpers can no longer open.
    for old in _folder_of(folder, before.epoch).glob("*.key"):
        old.unlink()
    groups, said = _write_helpers(folder, epoch, before.federation, before.committee)
    registry = before.model_copy(update={"epoch": epoch, "group_keys": groups.group_keys})
    return f"{said}\n{_write_registry(folder, registry, operator)}"


def verified(file: Path, operator: Path) -> tuple[str, list[list[str]]]:
    """Return what a registry says in words, and a row for each who takes part: name, part and public key.

    Raises ConfigError for a registry that this operator has not signed.
    """
    found = read_registry(_text_of(file), read_operator(operator))
    groups = zip(found.committee.groups, found.group_keys, strict=True)
    return _in_words(found), [
        *([name, "worker", key] for name, key in found.workers.items()),
        *([name, "worker, revoked", ""] for name in found.revoked),
        *([", ".join(members), "helpers", key] for members, key in groups),
    ]


def _write_helpers(
    folder: Path, epoch: int, federation: str, committee: Committee
) -> tuple[HelperGroups, str]:
    public, of_helpers = new_helper_keys(federation, epoch, committee)
    place = _folder_of(folder, epoch)
    for each in of_helpers:
        path = place / f"{each.name}.key"
        write_new(path, each)
        write_new_ledger(ledger_beside(path), each)
    write_public(place / GROUPS, public)
    files = in_a_row([f"{name}.key" for name in committee.helpers])
    return public, (
        f"epoch {epoch}: made {files} in {place}, and a .ledger for each; move each pair to its helper. "
        f"{committee.fewest_to_open} of them open a sum, and {committee.colluding} with the aggregator learn "
        "nothing more"
    )


def _write_registry(folder: Path, registry: Registry, operator: OperatorKey) -> str:
    write_whole(folder / REGISTRY, [signed_registry(registry, operator.private).encode()])
    return f"signed {folder / REGISTRY}: {_in_words(registry)}"


def _newest_groups(folder: Path) -> HelperGroups:
    epochs = _epochs(folder)
    if not epochs:
        raise ConfigError(f"there are no helpers in {folder}: make their keys with `fluffle keys helpers`")
    return read_file(_folder_of(folder, max(epochs)) / GROUPS, HelperGroups)


def _registry_before(folder: Path) -> Registry | None:
    path = folder / REGISTRY
    return read_registry(_text_of(path), read_operator(folder / OPERATOR_PUBLIC)) if path.exists() else None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _folder_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch}"


def _epochs(folder: Path) -> list[int]:
    numbers = (path.name.removeprefix("epoch-") for path in folder.glob("epoch-*"))
    return [int(number) for number in numbers if number.isdecimal()]


def _in_words(found: Registry) -> str:
    revoked = f", {len(found.revoked)} revoked" if found.revoked else ""
    return (
        f"{found.federation}, epoch {found.epoch}: {count(len(found.workers), 'worker')}{revoked}, "
        f"{count(len(found.helpers), 'helper')}"
    )
