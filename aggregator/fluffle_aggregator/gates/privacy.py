"""Whether the promise of differential privacy covers one more update of a worker. Pure.

Workers obey the plan, so that this refuses those alone that do not. It follows from the model's record: a new
leader decides as the one before it, also about a message that an operator sends again.
"""

from dataclasses import replace

from fluffle_aggregator.gates.gate import Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.private.sums import PrivateSums

TOO_SOON = "too-soon"
BUDGET_SPENT = "budget-spent"


def within_privacy_budget(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
    """Let an update pass that the promise covers, without what it says besides its vector."""
    if model.private is None:
        return incoming
    worker, plan, state = incoming.update.id.worker, model.private.plan, model.private.state
    # An update that has all its noise, and was refused before, costs nothing when it is sent again.
    is_counted = model.private.is_local and incoming.update.released > 0
    if state.is_spent(worker, plan) and not is_counted:
        return Refusal(
            BUDGET_SPENT,
            f"the model contains {state.of(worker).updates} updates of {worker}, and the privacy budget "
            f"allows {plan.updates} (dp_max_updates)",
        )
    if incoming.update.released > plan.updates:
        return Refusal(
            BUDGET_SPENT,
            f"{worker} says that it has sent {incoming.update.released} updates, and the privacy budget "
            f"allows {plan.updates} (dp_max_updates)",
        )
    if not model.private.is_local and (refusal := _too_soon(worker, model.private, model)):
        return refusal
    # A record says of 0 that it is unknown.
    return replace(incoming, update=replace(incoming.update.saying_nothing, examples=0, steps=0))


def _too_soon(worker: str, private: PrivateSums, model: GlobalModel) -> Refusal | None:
    state = private.state
    if worker in model.in_buffer:
        return Refusal(TOO_SOON, f"an update of {worker} is in this buffer already, and none may have two")
    if wait := state.steps_to_wait(worker, private.plan):
        return Refusal(
            TOO_SOON,
            f"the last update of {worker} is in sum {state.of(worker).last_step}, and this is sum "
            f"{state.steps + 1}: {wait} more must come before its next (dp_separation)",
        )
    return None
