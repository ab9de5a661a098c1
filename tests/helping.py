"""The keys of a federation with helpers in a folder, and close records as a leader makes them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluffle.secure.closing import ClosedUpdate, CloseRecord, digest_of
from fluffle.secure.committee import Committee
from fluffle.secure.key_files import (
    OperatorKey,
    WorkerKey,
    WorkerPublicKey,
    new_helper_keys,
    public_part,
    read_private,
    write_public,
)
from fluffle.secure.registry import Registry, read_registry
from fluffle.update import UpdateId
from fluffle_cli.making_keys import make_helpers, make_operator, rotate_keys, sign

HELPERS = ("helper-1", "helper-2", "helper-3")
WORKERS = ("w1", "w2", "w3", "w4")
SIZE = 700

_PUBLIC, (HELPER, *_) = new_helper_keys("digits", 1, Committee(HELPERS, 1))
# A registry that no operator has signed, and the key of its first helper, for what reads no file.
REGISTRY = Registry(
    federation="digits",
    epoch=1,
    helpers=HELPERS,
    colluding=1,
    group_keys=_PUBLIC.group_keys,
    workers={name: public_part(WorkerKey.new("digits", name).private) for name in WORKERS},
)


class Keys:
    """A folder with the operator's files, and one folder for each helper, as on a machine of its own."""

    def __init__(self, folder: Path, federation: str = "digits") -> None:
        self.folder, self.federation = folder, federation
        self.operator_folder = folder / "operator"
        self.registry, self.operator = folder / "registry.json", folder / "operator.pub"
        self.workers = {name: WorkerKey.new(federation, name) for name in WORKERS}
        for name, key in self.workers.items():
            write_public(folder / f"{name}.pub", WorkerPublicKey.of(key))
        make_operator(self.operator_folder)
        make_helpers(self.operator_folder, HELPERS, federation, 1)
        self.sign()
        for helper in HELPERS:
            (folder / helper).mkdir()
            self.hand_over(helper, 1)

    def key(self, helper: str = "helper-1") -> Path:
        """Return where a helper has its key."""
        return self.folder / helper / f"{helper}.key"

    def ledger(self, helper: str = "helper-1") -> Path:
        """Return where a helper has its ledger."""
        return self.key(helper).with_suffix(".ledger")

    def sign(self, *, revoke: Sequence[str] = ()) -> None:
        """Sign the registry, and send it to everybody."""
        files = [self.folder / f"{name}.pub" for name in WORKERS if name not in revoke]
        sign(self.operator_folder, files, revoke)
        self.send_registry()

    def send_registry(self) -> None:
        """Put the newest registry, and the operator's public key, where the helpers read them."""
        for name in ("registry.json", "operator.pub"):
            (self.operator_folder / name).replace(self.folder / name)
            (self.operator_folder / name).write_bytes((self.folder / name).read_bytes())

    def rotate(self) -> None:
        """Make the keys of the next epoch, and send the registry; the helpers' keys are not moved yet."""
        rotate_keys(self.operator_folder)
        self.send_registry()

    def hand_over(self, helper: str, epoch: int) -> None:
        """Move a helper's files of an epoch to it, in place of those that it has."""
        for suffix in (".key", ".ledger"):
            made = self.operator_folder / f"epoch-{epoch}" / f"{helper}{suffix}"
            made.replace(self.folder / helper / made.name)

    def signed(self) -> Registry:
        """Return the registry."""
        operator = read_private(self.operator_folder / "operator.key", OperatorKey)
        return read_registry(self.registry.read_text(), operator.private.public_key())


def closed(worker: str, sequence: int = 1, base_version: int = 0, factor: int = 64) -> ClosedUpdate:
    """Return an update of a sum."""
    return ClosedUpdate(UpdateId(worker, "run", sequence), 1, base_version, factor)


def first_close(federation: str = "digits", **changes: Any) -> CloseRecord:
    """Return the first close record of an epoch: version 1, made of an update of each of three workers."""
    close = CloseRecord(
        federation=federation,
        epoch=1,
        number=1,
        previous="",
        term=1,
        version=1,
        size=SIZE,
        bits=32,
        greatest=64,
        asked=("helper-1", "helper-1", "helper-2"),
        updates=tuple(closed(name) for name in ("w1", "w2", "w3")),
    )
    return replace(close, **changes)


def following(close: CloseRecord, *updates: ClosedUpdate) -> CloseRecord:
    """Return the next close record: with a new update of each of three workers, or with these."""
    number = close.number + 1
    new = tuple(closed(name, number, close.version) for name in ("w1", "w2", "w3"))
    return replace(
        close, number=number, previous=digest_of(close), version=close.version + 1, updates=updates or new
    )
