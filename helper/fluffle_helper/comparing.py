"""How helpers find out that an aggregator has shown them different close records of one number. Pure.

An aggregator that shows them different records could have two sums opened that differ by one update. So each
helper says which record it has seen, and answers when enough of them have seen the same one: then, whichever
of the helpers collude, no two of the others answer different records.
"""

from dataclasses import dataclass
from typing import Final

from fluffle.fields import Name, Positive, ShortText
from fluffle.framing import HeaderLimits, join
from fluffle.message import BareMessage, decode
from fluffle.secure.committee import Committee
from fluffle.secure.helping import Ledger

LIMITS: Final = HeaderLimits(4096, 64)
# Each helper speaks of the newest records only; more of them are not kept.
MOST_KEPT: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenClose:
    """Which close record of a number a helper has seen."""

    federation: ShortText
    epoch: Positive
    helper: Name
    number: Positive
    digest: ShortText


_SEEN: Final = BareMessage("seen-close", SeenClose)


def encode_seen(seen: SeenClose) -> bytes:
    """Return the message that tells the other helpers which record this one has seen."""
    return bytes(join(_SEEN.header(seen), [], LIMITS))


def decode_seen(body: bytes) -> SeenClose:
    """Read such a message. Raises WireError that names the field."""
    return decode(body, LIMITS, {"seen-close": _SEEN.read})


def needed_to_agree(committee: Committee) -> int:
    """Return how many helpers must have seen the same record: any two such sets share an honest helper.

    Two sets of ceil((n + t + 1) / 2) of n helpers share t + 1 of them, of whom t may collude.
    """
    return -(-(len(committee.helpers) + committee.colluding + 1) // 2)


class Comparison:
    """What the helpers of an epoch have said about its newest close records."""

    def __init__(self, federation: str, epoch: int, committee: Committee) -> None:
        self._federation, self._epoch, self._committee = federation, epoch, committee
        self._said: dict[str, dict[int, str]] = {helper: {} for helper in committee.helpers}

    def hear(self, seen: SeenClose, sender: str | None) -> None:
        """Take in what a helper says; `sender` is who it is, as the broker has verified."""
        is_own = (seen.federation, seen.epoch) == (self._federation, self._epoch)
        if seen.helper != sender or seen.helper not in self._said or not is_own:
            return
        said = self._said[seen.helper]
        said[seen.number] = seen.digest
        if len(said) > MOST_KEPT:
            del said[min(said)]

    def agree(self, ledger: Ledger) -> bool:
        """Tell whether enough helpers have seen the newest record of this ledger."""
        return len(self._saying(ledger, same=True)) >= needed_to_agree(self._committee)

    def others(self, ledger: Ledger) -> list[str]:
        """Return those who have seen another record, once so many have that there can be no agreement."""
        found = self._saying(ledger, same=False)
        is_lost = len(self._committee.helpers) - len(found) < needed_to_agree(self._committee)
        return found if is_lost else []

    def missing(self, ledger: Ledger) -> list[str]:
        """Return those who have said nothing about this record."""
        return [helper for helper, said in self._said.items() if ledger.number not in said]

    def _saying(self, ledger: Ledger, *, same: bool) -> list[str]:
        return [
            helper
            for helper, said in self._said.items()
            if ledger.number in said and (said[ledger.number] == ledger.digest) == same
        ]
