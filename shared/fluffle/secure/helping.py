"""What a helper checks before it opens a sum, and what it remembers of those that it has opened. Pure.

A helper believes nothing of a close record. It opens each update once, in one sum, and so no two sums differ
by a single update. Which record is the next one depends on the records alone, whether a helper opens or
refuses them: so all helpers agree about it, also those that know more of who is revoked. A helper remembers
all updates of all records, also those of workers that it does not know: other helpers perhaps know them.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from fluffle.events import Text
from fluffle.fields import Count, FieldError, Positive, ShortText
from fluffle.framing import Header, HeaderLimits, join
from fluffle.message import BareMessage, decode
from fluffle.secure.closing import ClosedUpdate, CloseRecord, NotOpened, Opening, digest_of
from fluffle.secure.key_files import HelperKey
from fluffle.secure.masks import Masked, mask_key, sums_of_masks
from fluffle.secure.registry import Registry
from fluffle.secure.weights import factor_of
from fluffle.topology import MIB
from fluffle.update import MAX_RUNS, Applied, AppliedUpdates

FEWEST_WORKERS: Final = 3
LIMITS: Final = HeaderLimits(8 * MIB, 400_000)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a helper does not open a sum: the name of the rule, and what was found."""

    rule: ShortText
    detail: Text

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


FULL: Final = Refused(
    "ledger-full",
    f"this helper remembers {MAX_RUNS} runs of workers, and opens nothing more in this epoch: rotate the "
    "keys (`fluffle keys rotate`)",
)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a helper has seen in an epoch: how many close records, the digest of the last, all their updates.

    `refused` says why the last one was not opened, None if it was. Once `is_full`, a record had more updates
    than can be remembered, and nothing more is opened in this epoch.
    """

    epoch: Positive
    number: Count = 0
    digest: ShortText = ""
    opened: Applied = field(default_factory=AppliedUpdates)
    refused: Refused | None = None
    is_full: bool = False

    def checked(
        self, close: CloseRecord, registry: Registry, *, fewest_workers: int = FEWEST_WORKERS
    ) -> "tuple[Ledger, Refused | None]":
        """Return the ledger after a close record, and why that is not opened; None when it is.

        The newest record gives the same ledger and the same answer: the first answer was perhaps lost. The
        updates of a record that is refused are never opened later: another helper may have opened them.
        """
        if (close.federation, close.epoch) != (registry.federation, self.epoch):
            found, own = close.federation, registry.federation
            detail = f"of {found}, epoch {close.epoch}, and not of {own}, epoch {self.epoch}"
            return self, Refused("other-epoch", detail)
        digest = digest_of(close)
        if digest == self.digest:
            return self, self.refused
        if close.number <= self.number:
            return self, Refused("two-answers", f"number {close.number} was another record")
        if close.number != self.number + 1 or close.previous != self.digest:
            return self, Refused(
                "missing-record",
                f"number {close.number} follows {close.previous or 'none'}, and the last one here is number "
                f"{self.number}, {self.digest or 'none'}: rotate the keys if this helper's ledger is lost",
            )
        opened = self.opened.adding(each.id for each in close.updates)
        if self.is_full or len(opened.runs) > MAX_RUNS:
            return replace(self, number=close.number, digest=digest, refused=FULL, is_full=True), FULL
        refused = next(
            (
                Refused(NAMES[rule], detail)
                for rule in NAMES
                for detail in rule(close, self.opened, registry, fewest_workers)
            ),
            None,
        )
        return Ledger(self.epoch, close.number, digest, opened, refused), refused


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
            yield f"{each.id} was in an earlier sum"
        elif counts[each.id] > 1:
            yield f"{each.id} stands there {counts[each.id]} times"


def _too_few(close: CloseRecord, _opened: AppliedUpdates, _registry: Registry, fewest: int) -> Iterator[str]:
    weights: Counter[str] = Counter()
    for each in close.updates:
        weights[each.id.worker] += each.factor
    needed = max(fewest, close.honest)
    if len(weights) < needed:
        yield f"the updates are of {len(weights)} workers, and at least {needed} are needed"
    for worker, weight in weights.items():
        if 2 * weight > weights.total():
            yield f"{worker} has {weight} of the weight of {weights.total()}, more than half"


def _two_of_one(
    close: CloseRecord, _opened: AppliedUpdates, _registry: Registry, _fewest: int
) -> Iterator[str]:
    if not close.honest:
        return
    counts = Counter(each.id.worker for each in close.updates)
    for worker, count in counts.items():
        if count > 1:
            yield f"{worker} has {count} updates in it, and the noise of a sum covers one of each worker"


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
    _two_of_one: "two-of-one-worker",
    _wrong_weight: "wrong-weight",
}
_LEDGER: Final = BareMessage("ledger", Ledger)


def encode_ledger(ledger: Ledger) -> bytes:
    """Return a ledger as bytes, for a file."""
    return bytes(join(_LEDGER.header(ledger), [], LIMITS))


def decode_ledger(body: bytes) -> Ledger:
    """Read a ledger. Raises WireError when the bytes are none, or when updates may be missing in it."""
    return decode(body, LIMITS, {"ledger": _read_ledger})


def _read_ledger(header: Header, payload: memoryview) -> Ledger:
    if "is_full" not in header:
        # It remembered no updates of workers that were not in the registry.
        if header.get("number") != 0:
            raise FieldError("an older version wrote it, and did not remember all updates", "is_full")
        header["is_full"] = False
    return _LEDGER.read(header, payload)


def openings(
    close: CloseRecord, key: HelperKey, registry: Registry, *, of_groups: Collection[int] | None = None
) -> Iterator[Opening]:
    """Yield what a helper answers to a close record: one opening for each of its groups, or of these."""
    digest, groups = digest_of(close), registry.committee.groups
    for own in key.groups:
        group = groups.index(own.members)
        if of_groups is not None and group not in of_groups:
            continue
        keys = [
            (
                mask_key(own.private, registry.worker_key(each.id.worker), _masked(close, each), group),
                each.factor,
            )
            for each in close.updates
        ]
        yield Opening(
            federation=close.federation,
            epoch=close.epoch,
            helper=key.name,
            group=group,
            digest=digest,
            masks=memoryview(close.modulus.packed(close.size, sums_of_masks(close.size, keys))),
        )


def not_opened(close: CloseRecord, helper: str, refused: Refused, ledger: Ledger) -> NotOpened:
    """Return what a helper answers to a close record that it refuses."""
    return NotOpened(
        federation=close.federation,
        epoch=close.epoch,
        helper=helper,
        digest=digest_of(close),
        rule=refused.rule,
        detail=refused.detail,
        number=ledger.number,
        last=ledger.digest,
    )


def _masked(close: CloseRecord, update: ClosedUpdate) -> Masked:
    return Masked(
        close.federation, close.epoch, update.id, update.base_term, update.base_version, close.honest
    )
