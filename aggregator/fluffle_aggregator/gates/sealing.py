"""Whether the range of the ciphertexts has room for one more sealed update. Pure."""

from fluffle_aggregator.gates.gate import Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.sealed.fitting import why_no_room
from fluffle_aggregator.sealed.sealed_sum import SealedSum


def within_sealed_range(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
    """Let an update pass whose clipped values cannot take the sealed sum out of its range."""
    buffer = model.accumulator
    if model.sealed is None or incoming.update.refresh or not isinstance(buffer, SealedSum):
        return incoming
    why = why_no_room(model.weigh(incoming.update), buffer, model.sealed)
    return Refusal(*why) if why else incoming
