"""The only way into the model: read a message, pass it through the gates, and fold it. Pure.

The leader, the trial of a suspicious message, the simulations and the benchmarks all take messages in here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fluffle.broker import Delivery
from fluffle.errors import ProtocolMismatch, WireError
from fluffle.record import Evaluation, Folded, Hello
from fluffle.sites import SiteEvaluation
from fluffle.survey.messages import SiteStatistics
from fluffle.topology import Topology
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_aggregator.gates.fitting import of_another_federation
from fluffle_aggregator.gates.gate import Gate, Incoming, Refusal
from fluffle_aggregator.gates.history import of_a_version_to_come
from fluffle_aggregator.gates.sender import FOREIGN_SENDER, foreign_sender
from fluffle_aggregator.global_model import GlobalModel

UNREADABLE = "unreadable"
OTHER_PROTOCOL = "other-protocol"


@dataclass(frozen=True, slots=True, eq=False)
class TakenIn:
    """An update that is in the model now, as it came through the gates."""

    incoming: Incoming
    folded: Folded


@dataclass(frozen=True, slots=True, eq=False)
class Postponed:
    """An update that cannot come into the buffer now: a sum is awaited, or its worker has its share."""

    update: WeightUpdate


@dataclass(frozen=True, slots=True, eq=False)
class Refreshed:
    """A refresh that has made the sealed sum one that was encrypted anew."""

    update: WeightUpdate


@dataclass(frozen=True, slots=True, eq=False)
class TurnedDown:
    """A message that is not taken in, with the update that it holds if it could be read."""

    refusal: Refusal
    update: WeightUpdate | None = None


def take_in(
    delivery: Delivery, model: GlobalModel, gates: Sequence[Gate], *, now: float
) -> TakenIn | Refreshed | Postponed | TurnedDown | Evaluation | SiteEvaluation | Hello | SiteStatistics:
    """Read a message, believing nothing of it; pass an update through the gates, and fold it.

    `now` is Unix time in seconds. A refused update leaves the model as it was. Other messages are returned as
    they are.
    """
    try:
        message = decode_inbound(delivery.body, most_parameters=model.record.layout.size)
    except WireError as error:
        reason = OTHER_PROTOCOL if isinstance(error, ProtocolMismatch) else UNREADABLE
        return TurnedDown(Refusal(reason, str(error)))
    if not isinstance(message, WeightUpdate):
        return message
    incoming = Incoming(delivery, message)
    for gate in gates:
        passed = gate(incoming, model)
        if isinstance(passed, Refusal):
            if passed.reason != FOREIGN_SENDER and model.secure and model.secure.has_closed(message.id):
                # It counts, whatever the settings have become since its sum was closed.
                return Postponed(message)
            return TurnedDown(passed, message)
        incoming = passed
    if message.refresh:
        model.refresh(message)
        return Refreshed(message)
    if model.secure and model.secure.has_to_wait(message, model.weigh(message).factor):
        return Postponed(message)
    folded = model.fold(
        incoming.update,
        now=now,
        published_at=delivery.published_at,
        norm=incoming.norm,
        is_share_limited=incoming.is_share_limited,
    )
    return TakenIn(incoming, folded)


def evaluation_refusal(
    delivery: Delivery, evaluation: Evaluation, model: GlobalModel, topology: Topology
) -> Refusal | None:
    """Return why an evaluator's report does not count, or None when it does."""
    return (
        foreign_sender(evaluation.evaluator, delivery, topology.evaluations_in)
        or of_another_federation("the evaluation", evaluation.federation, model)
        or of_a_version_to_come(evaluation.version, model)
    )
