"""`fluffle keys`: the keys of secure aggregation, and the registry that the operator signs."""

from pathlib import Path
from typing import Annotated

import typer

from fluffle.command_line import new_app, plain_command
from fluffle.consoles import print_table
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
)
from fluffle.secure.registry import Registry, read_registry, signed_registry
from fluffle.settings import require_name
from fluffle.whole_file import write_whole
from fluffle_cli.words import count, in_a_row

OPERATOR_KEY, OPERATOR_PUBLIC, REGISTRY, GROUPS = (
    "operator.key",
    "operator.pub",
    "registry.json",
    "groups.json",
)

Folder = Annotated[Path, typer.Option(help="The operator's folder of keys.", metavar="PATH")]
Federation = Annotated[str, typer.Option(help="Name of the federation.", metavar="TEXT")]

app = new_app(
    "Make the keys of secure aggregation, and the registry of who takes part.\n\n"
    "Secure aggregation itself is being built: so far nothing else uses these keys.\n\n"
    "The operator runs `init`, `helpers` and `registry` on a machine that is not the aggregator's. Each "
    "worker runs `worker` where it works, and sends the file that ends with .pub to the operator. No private "
    "key is ever overwritten, and only its owner may read it."
)


@plain_command
def init(folder: Folder = Path("keys")) -> None:
    """Make the operator's key, with which the registry is signed.

    Whoever takes part gets operator.pub from you, in a way in which nobody can replace it. Keep operator.key
    to yourself: whoever has it can register workers that do not exist, and learn what the others send.
    """
    key = OperatorKey.new()
    write_new(folder / OPERATOR_KEY, key)
    public = key.private.public_key().public_bytes_raw().hex()
    write_whole(folder / OPERATOR_PUBLIC, [f"{public}\n".encode()])
    typer.echo(f"made {folder / OPERATOR_KEY} and {folder / OPERATOR_PUBLIC}: {public}")


@plain_command
def helpers(
    names: Annotated[list[str], typer.Argument(help="A name for each helper.", metavar="NAME...")],
    federation: Federation = "digits",
    colluding: Annotated[
        int,
        typer.Option(
            help="How many helpers may collude with the aggregator and still learn no single update. So many "
            "and one more are needed to open a sum.",
            min=1,
        ),
    ] = 1,
    folder: Folder = Path("keys"),
) -> None:
    """Make the keys of the helpers, for a new epoch.

    Example: `fluffle keys helpers helper-1 helper-2 helper-3`. Move each file to its helper; no helper may
    have another one's.
    """
    epoch = max(_epochs(folder), default=0) + 1
    try:
        committee = Committee(tuple(require_name(name) for name in names), colluding)
        require_federation_name(federation)
    except ValueError as error:
        raise ConfigError(f"these helpers cannot be: {error}") from error
    _write_helpers(folder, epoch, federation, committee)


@plain_command
def worker(
    name: Annotated[str, typer.Argument(help="Name of the worker.", metavar="NAME")],
    federation: Federation = "digits",
    folder: Annotated[Path, typer.Option(help="Folder for the two files.", metavar="PATH")] = Path(),
) -> None:
    """Make a worker's key. Send the file NAME.pub to the operator, and keep NAME.key."""
    try:
        key = WorkerKey.new(require_federation_name(federation), require_name(name))
    except ValueError as error:
        raise ConfigError(f"this worker cannot be: {error}") from error
    write_new(folder / f"{name}.key", key)
    write_whole(folder / f"{name}.pub", [f"{WorkerPublicKey.of(key).model_dump_json(indent=2)}\n".encode()])
    typer.echo(f"made {folder / name}.key, and {folder / name}.pub for the operator")


@plain_command
def registry(
    workers: Annotated[
        list[Path] | None, typer.Argument(help="A worker's public key to add.", metavar="[NAME.pub]...")
    ] = None,
    revoke: Annotated[
        list[str] | None,
        typer.Option(help="A worker that may no longer take part; can be repeated.", metavar="NAME"),
    ] = None,
    folder: Folder = Path("keys"),
) -> None:
    """Sign the registry of the newest epoch: its helpers, and the workers of the registry before with these.

    Example: `fluffle keys registry hospital-1.pub hospital-2.pub`. Send registry.json to everybody who takes
    part, with the aggregator and the helpers: it holds no secret.
    """
    operator = read_private(folder / OPERATOR_KEY, OperatorKey)
    groups = _newest_groups(folder)
    before = _registry_before(folder)
    known = dict(before.workers) if before else {}
    revoked = {*(before.revoked if before else ()), *(revoke or ())}
    for each in (read_file(path, WorkerPublicKey) for path in workers or ()):
        if each.federation != groups.federation:
            raise ConfigError(
                f"{each.name}'s key is for the federation {each.federation}, and the helpers are for "
                f"{groups.federation}"
            )
        if each.name in revoked:
            raise ConfigError(f"the worker {each.name} is revoked: let it take another name")
        known[each.name] = each.public_key
    for name in revoke or ():
        if name not in known and not (before and name in before.revoked):
            raise ConfigError(
                f"there is no worker {name!r} to revoke: registered are {in_a_row(sorted(known)) or 'none'}"
            )
    signed = Registry(
        federation=groups.federation,
        epoch=groups.epoch,
        helpers=groups.helpers,
        colluding=groups.colluding,
        group_keys=groups.group_keys,
        workers={name: known[name] for name in sorted(known) if name not in revoked},
        revoked=tuple(sorted(revoked)),
    )
    write_whole(folder / REGISTRY, [signed_registry(signed, operator.private).encode()])
    typer.echo(f"signed {folder / REGISTRY}: {_in_words(signed)}")


@plain_command
def rotate(folder: Folder = Path("keys")) -> None:
    """Make the same helpers keys for the next epoch, and sign the registry with them.

    Send registry.json to everybody, and each helper its new file. What was masked for the epoch before can no
    longer be opened once the helpers have deleted their old keys.
    """
    operator, before = read_private(folder / OPERATOR_KEY, OperatorKey), _registry_before(folder)
    if before is None:
        raise ConfigError(f"there is no {folder / REGISTRY} yet: sign one with `fluffle keys registry`")
    epoch = max(_epochs(folder)) + 1
    groups = _write_helpers(folder, epoch, before.federation, before.committee)
    signed = before.model_copy(update={"epoch": epoch, "group_keys": groups.group_keys})
    write_whole(folder / REGISTRY, [signed_registry(signed, operator.private).encode()])
    typer.echo(f"signed {folder / REGISTRY}: {_in_words(signed)}")


@plain_command
def show(
    file: Annotated[Path, typer.Argument(help="The registry.", metavar="registry.json")],
    operator: Annotated[
        Path, typer.Option(help="File with the operator's public key.", metavar="PATH")
    ] = Path(OPERATOR_PUBLIC),
) -> None:
    """Check that the operator has signed a registry, and show who takes part."""
    found = read_registry(_text_of(file), read_operator(operator))
    typer.echo(f"{_in_words(found)}; the operator has signed it\n")
    print_table(
        ["name", "part", "public key"],
        [
            *([name, "worker", key] for name, key in found.workers.items()),
            *([name, "worker, revoked", ""] for name in found.revoked),
            *(
                [", ".join(members), "helpers", key]
                for members, key in zip(found.committee.groups, found.group_keys, strict=True)
            ),
        ],
    )


def _write_helpers(folder: Path, epoch: int, federation: str, committee: Committee) -> HelperGroups:
    public, of_helpers = new_helper_keys(federation, epoch, committee)
    place = _folder_of(folder, epoch)
    for each in of_helpers:
        write_new(place / f"{each.name}.key", each)
    write_whole(place / GROUPS, [f"{public.model_dump_json(indent=2)}\n".encode()])
    files = in_a_row([f"{name}.key" for name in committee.helpers])
    typer.echo(
        f"epoch {epoch}: made {files} in {place}; move each to its helper. {committee.fewest_to_open} of "
        f"them open a sum, and {committee.colluding} with the aggregator learn nothing more"
    )
    return public


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


for command in (init, helpers, worker, registry, rotate, show):
    app.command(command.__name__)(command)
