"""Whether an update is encrypted as the plan says, and whether the sum has room for it. Pure."""

from fluffle.codecs.sealed import SealedVector
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.update import WeightUpdate
from fluffle_aggregator.sealed.sealed_model import SealedModel
from fluffle_aggregator.sealed.sealed_sum import SealedSum
from fluffle_aggregator.sections import Weight

NOT_SEALED = "not-sealed"
OTHER_KEY = "other-key"
WRONG_SIZE = "wrong-size"
LATE_REFRESH = "late-refresh"
RANGE_FULL = "range-full"
Why = tuple[str, str]


def why_differently_sealed(update: WeightUpdate, sealed: SealedModel | None) -> Why | None:
    """Return reason and detail for which an update is refused that is not sealed as the plan says."""
    if sealed is None:
        if not update.key:
            return None
        return NOT_SEALED, "the update is sealed, and this federation is not: its worker trains anew"
    if not update.key:
        return (
            NOT_SEALED,
            "the update is not sealed, and this federation is: give its worker sealed_secret",
        )
    if update.key != sealed.plan.key:
        return OTHER_KEY, (
            f"the update is sealed under the key {update.key}, and the key of this federation is "
            f"{sealed.plan.key}: give its worker the sealed.secret of this federation"
        )
    found = update.vector.sealed_size if isinstance(update.vector, SealedVector) else 0
    if found != sealed.part.size:
        return WRONG_SIZE, f"{found} elements of the update are sealed, and the plan says {sealed.part.size}"
    return _why_no_refresh(update, sealed) if update.refresh else None


def why_no_room(weight: Weight, buffer: SealedSum, sealed: SealedModel) -> Why | None:
    """Return reason and detail for which the sum has no room for one more update, or None when it has."""
    state, plan = sealed.state, sealed.plan
    if state.has_room(plan, buffer.weight + buffer.integer_of(weight)):
        return None
    asked = f"worker {state.asked} is asked" if state.asked else "a worker will be asked"
    return RANGE_FULL, (
        f"the values of the sealed sum may have come to {state.bound(plan):.6g}, and ciphertexts hold "
        f"{LARGEST_VALUE:.6g}: {asked} to encrypt it anew, and then updates are taken again"
    )


def _why_no_refresh(update: WeightUpdate, sealed: SealedModel) -> Why | None:
    refresh, state = update.refresh, sealed.state
    if refresh is None or not sealed.has_sum:
        return LATE_REFRESH, "there is no sealed sum yet that could be encrypted anew"
    if refresh.refreshes != state.refreshes or refresh.weights > state.weights:
        return LATE_REFRESH, (
            f"the sum was encrypted anew {state.refreshes} times, and has a weight of {state.weights}; this "
            f"is for one of {refresh.refreshes} times and {refresh.weights}: another one has come before"
        )
    return None
