"""What a gate is: one check that each update passes before it is folded. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from fluffle.broker import Delivery
from fluffle.update import WeightUpdate
from fluffle_aggregator.global_model import GlobalModel


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message is not taken: a word to count by, and a sentence for whoever sent it."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class Incoming:
    """An update on its way through the gates.

    `norm` is the L2 norm of what it would move, None while norms are not limited. `norm_before` is that of an
    update that was clipped to `norm`. `is_share_limited` says that its weight counts towards its worker's
    share of the last updates.
    """

    delivery: Delivery
    update: WeightUpdate
    norm: float | None = None
    norm_before: float | None = None
    is_share_limited: bool = False


# Lets an update pass, as it is or changed, or says why not. Each change of the model's state is `fold`'s.
Gate = Callable[[Incoming, GlobalModel], Incoming | Refusal]
