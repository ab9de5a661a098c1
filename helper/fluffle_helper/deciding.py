"""What a helper does with a close record. Pure."""

from dataclasses import dataclass

from fluffle.secure.closing import CloseRecord
from fluffle.secure.helping import Ledger, Refused
from fluffle.secure.registry import Registry


@dataclass(frozen=True, slots=True)
class Decision:
    """The ledger after a close record, and the answer: openings of these groups, or why there are none.

    With `of_groups` None, all groups of the helper are to be opened.
    """

    close: CloseRecord
    ledger: Ledger
    refused: Refused | None
    of_groups: tuple[int, ...] | None


def decide(
    close: CloseRecord, helper: str, ledger: Ledger, registry: Registry, *, fewest_workers: int
) -> Decision | None:
    """Return what to do with a close record; None for one of another epoch, whose keys are not here.

    The first time only those answer who are asked, so that each group is opened once. When the same record
    comes again, somebody did not answer, and all do.
    """
    if close.federation == registry.federation and close.epoch != ledger.epoch:
        return None
    after, refused = ledger.checked(close, registry, fewest_workers=fewest_workers)
    if after is ledger or after.digest == ledger.digest:
        return Decision(close, ledger, refused, None)
    asked = tuple(group for group, name in enumerate(close.asked) if name == helper)
    return Decision(close, after, refused, asked)
