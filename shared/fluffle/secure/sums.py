"""A sum that waits to be opened, as it lies in the head queue: its close record, and the masked sum. Pure."""

from dataclasses import dataclass
from typing import Annotated, Final

from fluffle.errors import WireError
from fluffle.fields import Count, Table, at_most
from fluffle.framing import Header, HeaderLimits, join
from fluffle.pieces import Pieces
from fluffle.record import Rank
from fluffle.secure.closing import MOST_UPDATES, CloseRecord
from fluffle.secure.modulus import Residues
from fluffle.secure.plan import SecurePlan
from fluffle.secure.surveyed import size_of
from fluffle.survey.shape import SurveyShape
from fluffle.topology import MIB

LIMITS: Final = HeaderLimits(2 * MIB, 131_072)


@dataclass(frozen=True, slots=True)
class SummedUpdate:
    """What is to be known of an update in a sum besides its line in the close record, as in `Folded`.

    `released` is what the update says of its worker.
    """

    train_s: float
    published_at: float
    received_at: float
    released: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SumRecord:
    """A close record, and the weighted sum of its updates under their masks.

    `updates` are in the order of the close record's, and `plan` says how their numbers were made. With a
    `shape` they are answers to a survey. Whoever leads next goes on from here, and needs the updates
    themselves no more, nor the settings of before.
    """

    close: CloseRecord
    plan: SecurePlan
    updates: Annotated[tuple[SummedUpdate, ...], at_most(MOST_UPDATES)]
    shape: SurveyShape | None = None
    residues: Residues

    @property
    def rank(self) -> Rank:
        """The rank of the version that the sum makes, if its leader commits it."""
        return Rank(self.close.term, self.close.version)


_SUM: Final = Table(SumRecord, without=("residues",))


def sum_pieces(record: SumRecord) -> Pieces:
    """Return the message of a sum."""
    packed = record.close.modulus.pack(record.residues)
    return join({"kind": "sum", **_SUM.write(record)}, [memoryview(packed)], LIMITS)


def read_sum(header: Header, payload: memoryview) -> SumRecord:
    """Read a sum. Raises WireError that names the field."""
    found = _SUM.take(header)
    close: CloseRecord = found["close"]
    plan: SecurePlan = found["plan"]
    asked = plan.epoch, plan.modulus_bits, plan.greatest, plan.honest
    if asked != (close.epoch, close.bits, close.greatest, close.honest):
        raise WireError(
            "field plan: its epoch, modulus, greatest weight and honest workers are not those of the close "
            "record"
        )
    shape: SurveyShape | None = found["shape"]
    if shape and (fault := shape.fault or ("" if close.size == size_of(shape) else "it has another size")):
        raise WireError(f"field shape: {fault}")
    if len(found["updates"]) != len(close.updates):
        raise WireError(f"field updates: {len(found['updates'])} of the {len(close.updates)} that are closed")
    try:
        residues = close.modulus.unpack(payload, close.size)
    except ValueError as error:
        raise WireError(f"the payload is no sum: {error}") from error
    return SumRecord(**found, residues=residues)
