"""What a helper checks before it opens a sum, and what it remembers of those that it has opened. Pure.

A helper believes nothing of a close record. It opens each update once, in one sum, and so no two sums differ
by a single update.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fluffle.fields import Count, Positive, ShortText
from fluffle.framing import HeaderLimits, join
from fluffle.message import BareMessage, decode
from fluffle.secure.closing import ClosedUpdate, CloseRecord, Opening, digest_of
from fluffle.secure.key_files import HelperKey
from fluffle.secure.masks import Masked, add_masks, mask_key
from fluffle.secure.registry import Registry
from fluffle.secure.weights import factor_of
from fluffle.topology import MIB
from fluffle.update import Applied, AppliedUpdates

FEWEST_WORKERS: Final = 3
LIMITS: Final = HeaderLimits(8 * MIB, 400_000)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a helper does not open a sum: the name of the rule, and what was found."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a helper has opened in an epoch: how many sums, the digest of the last, and all their updates."""

    epoch: Positive
    number: Count = 0
    digest: ShortText = ""
    opened: Applied = field(default_factory=AppliedUpdates)

    def checked(
        self, close: CloseRecord, registry: Registry, *, fewest_workers: int = FEWEST_WORKERS
    ) -> "Ledger | Refused":
        """Return the ledger with a close record in it, or why it is not opened.

        The record that was opened last gives the same ledger: its answer was perhaps lost.
        """
        if (close.federation, close.epoch) != (registry.federation, self.epoch):
            own = f"{registry.federation}, epoch {self.epoch}"
            return Refused("other-epoch", f"of {close.federation}, epoch {close.epoch}, and not of {own}")
        digest = digest_of(close)
        if digest == self.digest:
            return self
        if close.number <= self.number:
            return Refused("two-answers", f"number {close.number} was opened already, with other content")
        if close.number != self.number + 1 or close.previous != self.digest:
            return Refused(
                "missing-record",
                f"number {close.number} follows {close.previous or 'none'}, and the last one here is number "
                f"{self.number}, {self.digest or 'none'}: rotate the keys if this helper's ledger is lost",
            )
        for rule in (_unknown, _twice, _too_few, _wrong_weight):
            for detail in rule(close, self.opened, registry, fewest_workers):
                return Refused(NAMES[rule], detail)
        opened = self.opened.adding(each.id for each in close.updates)
        if lost := [each.id for each in close.updates if each.id not in opened]:
            return Refused("ledger-full", f"{lost[0]} cannot be remembered")
        return replace(self, number=close.number, digest=digest, opened=opened)


def _unknown(close: CloseRecord, _opened: AppliedUpdates, registry: Registry, _fewest: int) -> Iterator[str]:
    for each in close.updates:
        if each.id.worker in registry.revoked:
            yield f"the worker {each.id.worker} is revoked"
        elif each.id.worker not in registry.workers:
            yield f"the worker {each.id.worker} is not in the registry"


def _twice(close: CloseRecord, opened: AppliedUpdates, _registry: Registry, _fewest: int) -> Iterator[str]:
    counts = Counter(each.id for each in close.updates)
    for each in close.updates:
        if each.id in opened:
            yield f"{each.id} was opened in an earlier sum"
        elif counts[each.id] > 1:
            yield f"{each.id} stands there {counts[each.id]} times"
        elif why := opened.why_full(each.id):
            yield why


def _too_few(close: CloseRecord, _opened: AppliedUpdates, _registry: Registry, fewest: int) -> Iterator[str]:
    weights: Counter[str] = Counter()
    for each in close.updates:
        weights[each.id.worker] += each.factor
    if len(weights) < fewest:
        yield f"the updates are of {len(weights)} workers, and at least {fewest} are needed"
    for worker, weight in weights.items():
        if 2 * weight > weights.total():
            yield f"{worker} has {weight} of the weight of {weights.total()}, more than half"


def _wrong_weight(
    close: CloseRecord, _opened: AppliedUpdates, _registry: Registry, _fewest: int
) -> Iterator[str]:
    for each in close.updates:
        staleness = close.version - 1 - each.base_version
        if staleness < 0:
            yield f"{each.id} began from version {each.base_version}, and the sum is for {close.version}"
        elif each.factor != (right := factor_of(staleness, close.greatest)):
            yield f"{each.id} is {staleness} versions late and weighs {right}, not {each.factor}"


NAMES: Final = {
    _unknown: "unknown-worker",
    _twice: "opened-before",
    _too_few: "too-few-workers",
    _wrong_weight: "wrong-weight",
}
_LEDGER: Final = BareMessage("ledger", Ledger)


def encode_ledger(ledger: Ledger) -> bytes:
    """Return a ledger as bytes, for a file."""
    return bytes(join(_LEDGER.header(ledger), [], LIMITS))


def decode_ledger(body: bytes) -> Ledger:
    """Read a ledger. Raises WireError when the bytes are none."""
    return decode(body, LIMITS, {"ledger": _LEDGER.read})


def openings(close: CloseRecord, key: HelperKey, registry: Registry) -> Iterator[Opening]:
    """Yield what a helper answers to a close record in its ledger: one opening for each of its groups."""
    digest, groups = digest_of(close), registry.committee.groups
    for own in key.groups:
        group, total = groups.index(own.members), np.zeros(close.size, np.uint32)
        for each in close.updates:
            worker = registry.worker_key(each.id.worker)
            mask = mask_key(own.private, worker, _masked(close, each), group)
            add_masks(total, [mask], close.modulus, each.factor)
        yield Opening(
            federation=close.federation,
            epoch=close.epoch,
            helper=key.name,
            group=group,
            digest=digest,
            masks=memoryview(close.modulus.pack(total)),
        )


def _masked(close: CloseRecord, update: ClosedUpdate) -> Masked:
    return Masked(close.federation, close.epoch, update.id, update.base_term, update.base_version)
