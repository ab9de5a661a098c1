"""Whether a message comes from whom it names, through the exchange for its kind. Pure."""

from fluffle.broker import Delivery
from fluffle.topology import Exchange
from fluffle_aggregator.gates.gate import Gate, Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel

FOREIGN_SENDER = "foreign-sender"


def foreign_sender(claimed: str, delivery: Delivery, way_in: Exchange) -> Refusal | None:
    """Return why a message may not speak for whom it names, or None when RabbitMQ vouches for it.

    RabbitMQ verifies the user that a message gives as its sender, and lets users publish only to the
    exchanges that they have the right to: workers to the one for updates, evaluators to the one for
    evaluations. So no worker can end the federation by claiming an accuracy, and no evaluator can train.
    """
    if delivery.exchange != way_in.name:
        return Refusal(
            FOREIGN_SENDER,
            f"a message of this kind must come through the exchange {way_in.name}, not {delivery.exchange!r}",
        )
    if delivery.user == claimed:
        return None
    found = f"the RabbitMQ user {delivery.user!r}" if delivery.user else "no verified RabbitMQ user (user_id)"
    return Refusal(FOREIGN_SENDER, f"the message speaks for {claimed!r} but comes from {found}")


def from_its_worker(updates_in: Exchange) -> Gate:
    """Return the gate that lets an update pass when it comes from its own worker."""

    def gate(incoming: Incoming, _model: GlobalModel) -> Incoming | Refusal:
        return foreign_sender(incoming.update.id.worker, incoming.delivery, updates_in) or incoming

    return gate
