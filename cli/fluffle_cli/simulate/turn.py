"""When a simulated worker may train with differential privacy, as `fluffle worker` decides it. Pure."""

from collections.abc import Sequence

from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.update import UpdateId


def has_turns(plan: Plan) -> bool:
    """Tell whether workers wait for their turns: not where each update has all its noise."""
    return plan.privacy is not None and plan.privacy.mechanism != "local"


def is_spent(worker: str, version: ModelVersion, released: int) -> bool:
    """Tell whether a worker leaves, since a version contains all updates that it may send.

    Where it adds the noise itself, it leaves when it has `released` so many.
    """
    plan, state = version.plan.privacy, version.privacy
    if plan is None or state is None:
        return False
    return state.is_spent(worker, plan) or (plan.mechanism == "local" and released >= plan.updates)


def has_to_wait(
    worker: str, version: ModelVersion, in_flight: Sequence[UpdateId], refused_before: int
) -> bool:
    """Tell whether a worker must wait for a later version before it trains.

    Until then an update is under way, of which no version has told since so many of its updates had been
    refused; or its next one would not count in the next sum.
    """
    plan, state = version.plan.privacy, version.privacy
    if plan is None or state is None or version.is_over or state.is_spent(worker, plan):
        return False
    is_refused = refusals(worker, version) > refused_before
    is_under_way = not is_refused and not all(map(version.applied.is_past, in_flight))
    return is_under_way or state.steps_to_wait(worker, plan) > 0


def refusals(worker: str, version: ModelVersion) -> int:
    """Return how many updates of a worker were refused, as far as a version tells."""
    known = version.contributors.get(worker)
    return known.rejected if known else 0
