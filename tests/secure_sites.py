"""Keys, plans and openings of secure aggregation, for tests of its parts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluffle.codecs.masked import MaskedVector
from fluffle.secure.closing import ClosedUpdate, CloseRecord
from fluffle.secure.committee import Committee
from fluffle.secure.helping import openings
from fluffle.secure.key_files import (
    HelperKey,
    OperatorKey,
    WorkerKey,
    new_helper_keys,
    public_part,
    write_new,
)
from fluffle.secure.modulus import Modulus, Signed
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry, signed_registry
from fluffle.update import WeightUpdate
from fluffle_worker.secure_keys import SecureKeys

COMMITTEE = Committee(("helper-1", "helper-2", "helper-3"), 1)
PLAN = SecurePlan(epoch=1, clip=2.0)


@dataclass(frozen=True, slots=True)
class Site:
    """The files of a worker, and what the operator and the helpers have."""

    folder: Path
    operator: OperatorKey
    registry: Registry
    helpers: tuple[HelperKey, ...]

    @property
    def files(self) -> dict[str, Path]:
        """The worker's files, by the names of its settings without their prefix."""
        return {
            "key": self.folder / "w1.key",
            "registry": self.folder / "registry.json",
            "operator": self.folder / "operator.pub",
        }

    def keys(self, *, federation: str = "digits", worker: str = "w1") -> SecureKeys:
        """Read the files as a worker does."""
        return SecureKeys(federation=federation, worker=worker, **self.files)

    def sign(self, registry: Registry, operator: OperatorKey | None = None) -> None:
        """Put a registry in the place of the worker's file."""
        text = signed_registry(registry, (operator or self.operator).private)
        self.files["registry"].write_text(text, encoding="utf-8")

    def numbers(self, update: WeightUpdate) -> Signed:
        """Take the masks off one update with all helpers' keys, which they never do for a single one."""
        return self.opened([(update, 1)])

    def opened(self, updates: Iterable[tuple[WeightUpdate, int]]) -> Signed:
        """Return the weighted sum of updates, opened by the helpers."""
        folded = list(updates)
        first = folded[0][0]
        assert isinstance(first.vector, MaskedVector)
        close = CloseRecord(
            federation=first.federation,
            epoch=first.epoch,
            number=1,
            previous="",
            term=9,
            version=99,
            size=first.vector.size,
            bits=first.vector.modulus.bits,
            greatest=64,
            asked=("helper-1",),
            updates=tuple(
                ClosedUpdate(each.id, each.base_term, each.base_version, factor) for each, factor in folded
            ),
        )
        total = np.zeros(close.size, np.uint32)
        for each, factor in folded:
            assert isinstance(each.vector, MaskedVector)
            each.vector.add_multiple_to(total, factor)
        masks = {each.group: each for key in self.helpers for each in openings(close, key, self.registry)}
        for opening in masks.values():
            close.modulus.add_packed(total, opening.masks, -1)
        return Modulus(close.bits).signed(total)


def registered(
    keys: Iterable[WorkerKey], *, epoch: int = 1, federation: str = "digits", revoked: tuple[str, ...] = ()
) -> tuple[Registry, tuple[HelperKey, ...]]:
    """Return a registry of these workers with new helpers' keys."""
    public, helpers = new_helper_keys(federation, epoch, COMMITTEE)
    registry = Registry(
        federation=federation,
        epoch=epoch,
        helpers=public.helpers,
        colluding=public.colluding,
        group_keys=public.group_keys,
        workers={each.name: public_part(each.private) for each in keys},
        revoked=revoked,
    )
    return registry, tuple(helpers)


def a_site(folder: Path, *, epoch: int = 1) -> Site:
    """Make the files of the worker "w1"."""
    operator, key = OperatorKey.new(), WorkerKey.new("digits", "w1")
    registry, helpers = registered([key], epoch=epoch)
    site = Site(folder, operator, registry, helpers)
    write_new(site.files["key"], key)
    public = operator.private.public_key().public_bytes_raw().hex()
    site.files["operator"].write_text(f"{public}\n", encoding="ascii")
    site.sign(registry)
    return site
