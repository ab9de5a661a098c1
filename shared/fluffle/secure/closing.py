"""Close records and openings: which updates a sum has, and what the helpers answer. Pure.

A close record comes from the aggregator. From then on the version that it names contains exactly its updates.
For each group of helpers, one member answers with an opening; whoever refuses says why. Behind the last close
record the aggregator says that the federation has finished.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from fluffle.errors import WireError
from fluffle.events import Text
from fluffle.fields import Count, Name, Positive, ShortText, Table, at_most, integer, must
from fluffle.framing import Header, HeaderLimits, join, record_digest
from fluffle.message import BareMessage, Read, decode, require_readable
from fluffle.model import MAX_PARAMETERS
from fluffle.pieces import Pieces
from fluffle.secure.committee import MOST_GROUPS
from fluffle.secure.modulus import Modulus
from fluffle.secure.plan import Factor, ModulusBits
from fluffle.topology import MIB
from fluffle.update import UpdateId

MOST_UPDATES: Final = 4096
# The leader goes on from a number that helpers name: the next one still fits into a message.
MOST_RECORDS: Final = 2**62 - 1
LIMITS: Final = HeaderLimits(MIB, 65_536)
Size = Annotated[Positive, must(lambda size: size <= MAX_PARAMETERS, f"{{}} is more than {MAX_PARAMETERS}")]


@dataclass(frozen=True, slots=True)
class ClosedUpdate:
    """An update of a sum: its base version, and the integer weight that its numbers are multiplied by."""

    id: UpdateId
    base_term: Positive
    base_version: Count
    factor: Factor


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRecord:
    """The updates of the sum that makes the version number `version`, closed by the leader of a term.

    `number` counts the close records of an epoch from 1, and `previous` is the digest of the one before,
    empty for the first. The sum has `size` numbers modulo 2**bits, and `greatest` is the weight of a fresh
    update. `asked` names, for each group of helpers, the member that is to answer; when the same record comes
    again, all members answer. `honest` is that of the plan by which the updates were masked.
    """

    federation: ShortText
    epoch: Positive
    number: Positive
    previous: ShortText
    term: Positive
    version: Positive
    size: Size
    bits: ModulusBits
    greatest: Factor
    asked: Annotated[tuple[Name, ...], at_most(MOST_GROUPS)]
    updates: Annotated[tuple[ClosedUpdate, ...], at_most(MOST_UPDATES)]
    honest: Count = 0

    def __contains__(self, update: UpdateId) -> bool:
        return any(each.id == update for each in self.updates)

    @property
    def modulus(self) -> Modulus:
        """The modulus of the sum."""
        return Modulus(self.bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The federation has finished, and why: unless a close record follows, helpers may leave."""

    because: Text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opening:
    """What a helper knows of the masks of a sum: the weighted sum of those of one of its groups.

    `digest` is that of the close record. `masks` are packed numbers modulo its 2**bits.
    """

    federation: ShortText
    epoch: Positive
    helper: Name
    group: Count
    digest: ShortText
    masks: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOpened:
    """A helper does not open a sum: the rule that it breaks, and what was found.

    `digest` is that of the close record. `number` and `last` are those of the newest close record that this
    helper has accepted or refused as the next one: the next one is to follow it.
    """

    federation: ShortText
    epoch: Positive
    helper: Name
    digest: ShortText
    rule: ShortText
    detail: Text
    number: Annotated[int, integer(0, MOST_RECORDS)]
    last: ShortText


_CLOSE: Final = BareMessage("close", CloseRecord)
_FINISHED: Final = BareMessage("finished", Finished)
_OPENING: Final = Table(Opening, without=("masks",))
_NOT_OPENED: Final = BareMessage("not-opened", NotOpened)


def encode_close(close: CloseRecord) -> bytes:
    """Return the message of a close record."""
    header = _CLOSE.header(close)
    body = bytes(join(header, [], LIMITS))
    require_readable(header, memoryview(b""), _CLOSE.read)
    return body


def decode_close(body: bytes) -> CloseRecord:
    """Read a close record. Raises WireError that names the field."""
    return decode(body, LIMITS, {"close": _CLOSE.read})


def encode_finished(finished: Finished) -> bytes:
    """Return the message that tells helpers of the federation's end."""
    return bytes(join(_FINISHED.header(finished), [], LIMITS))


def decode_for_helper(body: bytes) -> CloseRecord | Finished:
    """Read what an aggregator tells the helpers. Raises WireError that names the field."""
    readers: dict[str, Read[CloseRecord | Finished]] = {"close": _CLOSE.read, "finished": _FINISHED.read}
    return decode(body, LIMITS, readers)


def digest_of(close: CloseRecord) -> str:
    """Return the digest of a close record, by which the next one and its openings name it."""
    return record_digest(encode_close(close))


def opening_pieces(opening: Opening) -> Pieces:
    """Return the message of an opening; the masks are not copied."""
    return join({"kind": "opening", **_OPENING.write(opening)}, [opening.masks], LIMITS)


def encode_not_opened(refused: NotOpened) -> bytes:
    """Return the message of a helper that does not open a sum."""
    return bytes(join(_NOT_OPENED.header(refused), [], LIMITS))


def decode_answer(body: bytes, close: CloseRecord) -> Opening | NotOpened:
    """Read what a helper answers to a close record; masks are a view of the body.

    Raises WireError that names the field.
    """

    def read(header: Header, payload: memoryview) -> Opening:
        expected = close.modulus.bytes_of(close.size)
        if len(payload) != expected:
            raise WireError(f"the masks of this sum take {expected} bytes, not {len(payload)}")
        return Opening(**_OPENING.take(header), masks=payload)

    readers: dict[str, Read[Opening | NotOpened]] = {"opening": read, "not-opened": _NOT_OPENED.read}
    return decode(body, LIMITS, readers)
