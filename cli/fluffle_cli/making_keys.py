"""Makes the keys of secure aggregation and the registry of who takes part; what it returns is for people."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fluffle.errors import ConfigError
from fluffle.rights import require_federation_name
from fluffle.secure.committee import Committee
from fluffle.secure.helping import FEWEST_WORKERS
from fluffle.secure.key_files import (
    HelperGroups,
    HelperKey,
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
from fluffle.secure.registry import Registry, first_fault, read_registry, signed_registry
from fluffle.settings import require_name
from fluffle.whole_file import whole_folder, write_whole
from fluffle_cli.words import count, in_a_row

OPERATOR_KEY: Final = "operator.key"
OPERATOR_PUBLIC: Final = "operator.pub"
REGISTRY: Final = "registry.json"
GROUPS: Final = "groups.json"


def make_operator(folder: Path) -> str:
    """Make the operator's key in a folder; go on if an earlier call was killed before the public key."""
    if (folder / OPERATOR_KEY).exists() and not (folder / OPERATOR_PUBLIC).exists():
        key = read_private(folder / OPERATOR_KEY, OperatorKey)
    else:
        key = OperatorKey.new()
        write_new(folder / OPERATOR_KEY, key)
    public = key.private.public_key().public_bytes_raw().hex()
    write_whole(folder / OPERATOR_PUBLIC, [f"{public}\n".encode()])
    return f"made {folder / OPERATOR_KEY} and {folder / OPERATOR_PUBLIC}: {public}"


def make_helpers(folder: Path, names: Sequence[str], federation: str, colluding: int) -> str:
    """Make the keys of helpers for a new epoch. Raises ConfigError for helpers that cannot be."""
    try:
        committee = Committee(tuple(require_name(name) for name in names), colluding)
        require_federation_name(federation)
    except ValueError as error:
        raise ConfigError(f"these helpers cannot be: {error}") from error
    _require_same_federation(folder, federation, "these helpers are")
    epoch = max(_epochs(folder), default=0) + 1
    return _write_helpers(folder, *new_helper_keys(federation, epoch, committee))


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

    The private keys of older epochs that are still in the folder are deleted. Raises ConfigError for workers
    of another federation, for a second key of a worker in one epoch, for revoked workers that come back, and
    for unknown ones that are to be revoked.
    """
    operator, groups = read_private(folder / OPERATOR_KEY, OperatorKey), _newest_groups(folder)
    if groups is None:
        raise ConfigError(f"there are no helpers in {folder}: make their keys with `fluffle keys helpers`")
    before = _registry_before(folder, operator)
    if before and before.epoch > groups.epoch:
        raise ConfigError(
            f"{folder / REGISTRY} is of epoch {before.epoch}, and the newest {GROUPS} in {folder} of epoch "
            f"{groups.epoch}: put {_folder_of(folder, before.epoch) / GROUPS} back, or rotate the keys"
        )
    publics = [read_file(path, WorkerPublicKey) for path in workers]
    said = _sign(folder, operator, _with_workers(groups, before, publics, revoke), before)
    return "\n".join([said, *_delete_older(folder, groups.epoch)])


def rotate_keys(folder: Path, workers: Sequence[Path] = ()) -> str:
    """Make the same helpers new keys, and sign the registry with them and the new keys of these workers.

    The private keys of older epochs that are still in the folder are deleted last: if the process dies, the
    old keys and registry are whole, or the new ones. Raises ConfigError when there is no registry yet.
    """
    operator = read_private(folder / OPERATOR_KEY, OperatorKey)
    before = _registry_before(folder, operator)
    if before is None:
        raise ConfigError(f"there is no {folder / REGISTRY} yet: sign one with `fluffle keys registry`")
    epoch = max([before.epoch, *_epochs(folder)]) + 1
    publics = [read_file(path, WorkerPublicKey) for path in workers]
    groups, of_helpers = new_helper_keys(before.federation, epoch, before.committee)
    # First, so that nothing is written if a worker is refused.
    registry = _with_workers(groups, before, publics, ())
    said = [_write_helpers(folder, groups, of_helpers), _sign(folder, operator, registry, before)]
    return "\n".join([*said, *_delete_older(folder, epoch)])


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


def _write_helpers(folder: Path, groups: HelperGroups, keys: Sequence[HelperKey]) -> str:
    place = _folder_of(folder, groups.epoch)
    with whole_folder(place) as new:
        for each in keys:
            path = new / f"{each.name}.key"
            write_new(path, each)
            write_new_ledger(ledger_beside(path), each)
        write_public(new / GROUPS, groups)
    files = in_a_row([f"{each.name}.key" for each in keys])
    committee = Committee(groups.helpers, groups.colluding)
    return (
        f"epoch {groups.epoch}: made {files} in {place}, and a .ledger for each; move each pair to its "
        f"helper. {committee.fewest_to_open} of them open a sum, and {committee.colluding} with the "
        "aggregator learn nothing more"
    )


def _delete_older(folder: Path, epoch: int) -> Iterator[str]:
    """Delete the helpers' private keys of older epochs, with which old updates could be read; say so."""
    for older in sorted(each for each in _epochs(folder) if each < epoch):
        for path in sorted(_folder_of(folder, older).glob("*.key")):
            try:
                path.unlink()
            except OSError as error:
                raise ConfigError(
                    f"the registry of epoch {epoch} is signed, but {path} cannot be deleted "
                    f"({error.strerror}): delete it, since old updates could be read with it"
                ) from error
            yield f"deleted {path}"


def _with_workers(
    groups: HelperGroups, before: Registry | None, publics: Sequence[WorkerPublicKey], revoke: Sequence[str]
) -> Registry:
    """Return the registry of these helpers, with the workers of the one before and these."""
    known = dict(before.workers) if before else {}
    fixed = dict(known) if before and before.epoch == groups.epoch else {}
    revoked = {*(before.revoked if before else ()), *revoke}
    for each in publics:
        if each.federation != groups.federation:
            raise ConfigError(
                f"{each.name}'s key is for the federation {each.federation}, and the helpers are for "
                f"{groups.federation}"
            )
        if each.name in revoked:
            raise ConfigError(f"the worker {each.name} is revoked: let it take another name")
        if fixed.setdefault(each.name, each.public_key) != each.public_key:
            raise ConfigError(
                f"the worker {each.name} has another key in epoch {groups.epoch}. If it has lost that key, "
                f"rotate the keys (`fluffle keys rotate {each.name}.pub`), or revoke {each.name} and let it "
                "take another name"
            )
        known[each.name] = each.public_key
    for name in revoke:
        if name not in known and not (before and name in before.revoked):
            raise ConfigError(
                f"there is no worker {name!r} to revoke: registered are {in_a_row(sorted(known)) or 'none'}"
            )
    try:
        return Registry(
            federation=groups.federation,
            epoch=groups.epoch,
            helpers=groups.helpers,
            colluding=groups.colluding,
            group_keys=groups.group_keys,
            workers={name: known[name] for name in sorted(known) if name not in revoked},
            revoked=tuple(sorted(revoked)),
        )
    except ValidationError as error:
        raise ConfigError(f"this registry cannot be: {first_fault(error)}") from error


def _sign(folder: Path, operator: OperatorKey, registry: Registry, before: Registry | None) -> str:
    """Write the registry, and say what has become of each worker."""
    write_whole(folder / REGISTRY, [signed_registry(registry, operator.private).encode()])
    lines = [f"signed {folder / REGISTRY}: {_in_words(registry)}", *_changes(registry, before)]
    if (found := len(registry.workers)) < FEWEST_WORKERS:
        lines.append(
            f"warning: no sum is opened before {FEWEST_WORKERS} workers are registered, and there "
            f"{'is' if found == 1 else 'are'} {found}"
        )
    return "\n".join(lines)


def _changes(registry: Registry, before: Registry | None) -> Iterator[str]:
    keys = before.workers if before else {}
    for name, key in registry.workers.items():
        is_same = keys.get(name) == key
        yield f"{name}: {'unchanged' if is_same else 'has a new key' if name in keys else 'added'}"
    for name in registry.revoked:
        yield f"{name}: {'revoked before' if before and name in before.revoked else 'revoked'}"


def _newest_groups(folder: Path) -> HelperGroups | None:
    epochs = _epochs(folder)
    return read_file(_folder_of(folder, max(epochs)) / GROUPS, HelperGroups) if epochs else None


def _registry_before(folder: Path, operator: OperatorKey) -> Registry | None:
    """Return the registry in the folder. Raises ConfigError when it is not of the helpers' federation."""
    path = folder / REGISTRY
    if not path.exists():
        return None
    found = read_registry(_text_of(path), operator.private.public_key())
    _require_same_federation(folder, found.federation, f"{path} is")
    return found


def _require_same_federation(folder: Path, federation: str, what_is: str) -> None:
    groups = _newest_groups(folder)
    if groups and groups.federation != federation:
        raise ConfigError(
            f"{what_is} for the federation {federation}, and the helpers in {folder} are for "
            f"{groups.federation}: give each federation a folder of its own (--folder)"
        )


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
