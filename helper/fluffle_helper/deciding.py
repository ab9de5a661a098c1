"""What a helper does about a close record. Pure: no clock, no disk, no broker."""

from dataclasses import dataclass

from fluffle.secure.closing import CloseRecord, digest_of
from fluffle.secure.helping import Ledger, Refused
from fluffle.secure.registry import Registry


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send about a close record: openings of these groups, or why there are none."""

    close: CloseRecord
    groups: tuple[int, ...] = ()
    refused: Refused | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a close record: the ledger, which must be on the disk before the answer is sent.

    There is no answer to a record that other helpers are asked about, or that is of another epoch: when the
    operator rotates the keys, they may be here a moment later than at the aggregator.
    """

    ledger: Ledger
    answer: Answer | None = None


def decide(
    close: CloseRecord, ledger: Ledger, registry: Registry, *, helper: str, fewest_workers: int
) -> Decision:
    """Return what a helper does about a close record, given its ledger and the registry of the same epoch.

    A new record is answered for the groups that it asks this helper for. The newest one that comes again
    is answered for all groups of this helper: the one that was asked before has perhaps not answered.
    """
    if close.federation == registry.federation and close.epoch != ledger.epoch:
        return Decision(ledger)
    is_again = digest_of(close) == ledger.digest
    after, refused = ledger.checked(close, registry, fewest_workers=fewest_workers)
    if is_again and refused is None:
        # The registry may have changed since the record was opened.
        gone = [each.id.worker for each in close.updates if each.id.worker not in registry.workers]
        refused = Refused("unknown-worker", f"{gone[0]} is in the registry no more") if gone else None
    if refused:
        return Decision(after, Answer(close, refused=refused))
    own = own_groups(registry, helper)
    groups = own if is_again else tuple(group for group in own if close.asked[group : group + 1] == (helper,))
    return Decision(after, Answer(close, groups) if groups else None)


def own_groups(registry: Registry, helper: str) -> tuple[int, ...]:
    """Return the numbers of the groups that a helper is in."""
    return tuple(number for number, members in enumerate(registry.committee.groups) if helper in members)
