"""How many local steps a round has, so that it takes about the plan's `round_seconds`. Pure."""

from dataclasses import replace

from fluffle.plan import Plan
from fluffle.update import WeightUpdate
from fluffle_worker.pace.speed import Speed, usual

# Minibatches of a round while the speed is unknown: enough to time some that nothing is compiled for.
FIRST_STEPS = 4


def with_chosen_steps(plan: Plan, speed: Speed, *, idle_s: float = 0.0) -> Plan:
    """Return the plan of the next round of a worker of this speed, with the number of its local steps.

    `idle_s` is what the worker is known to idle in each round. A plan without `round_seconds` stays as it is.
    """
    if plan.round_seconds is None:
        return plan
    return replace(plan, local_steps=chosen_steps(plan, speed, idle_s=idle_s))


def chosen_steps(plan: Plan, speed: Speed, *, idle_s: float = 0.0) -> int:
    """Return how many minibatches take `round_seconds` together with the rest of a round, within bounds."""
    most = max(plan.min_steps, plan.max_steps)
    if speed.is_lost:
        return plan.min_steps
    if not speed.step_s:
        return min(max(FIRST_STEPS, plan.min_steps), most)
    rest_s = usual(speed.rest_s) if speed.rest_s else idle_s
    left_s = (plan.round_seconds or 0.0) - rest_s
    # Compared before it is rounded, since a quotient may be too large for an int.
    steps = min(max(left_s / usual(speed.step_s), plan.min_steps), most)
    return int(steps)


def is_too_long(plan: Plan, speed: Speed, *, idle_s: float = 0.0) -> bool:
    """Tell whether even `min_steps` minibatches take longer than `round_seconds`."""
    if plan.round_seconds is None or speed.is_lost or not speed.step_s:
        return False
    rest_s = usual(speed.rest_s) if speed.rest_s else idle_s
    return rest_s + plan.min_steps * usual(speed.step_s) > plan.round_seconds


def stamped(
    update: WeightUpdate, plan: Plan, examples: int, *, batch_size: int | None = None, rate_scale: float = 1.0
) -> WeightUpdate:
    """Return the update of a round of this plan with how it was trained; `examples` are those of its site.

    `batch_size` is by default the plan's, and `rate_scale` what the worker has multiplied the learning rate
    by.

    Where workers choose their steps an update counts by all examples of its site, if they are known (not 0):
    a slow worker has no time for all of them, and counts as much as a fast one that has as many.
    """
    counted = examples if plan.round_seconds is not None and examples else update.examples
    size = plan.batch_size if batch_size is None else batch_size
    return replace(update, batch_size=size, learning_rate_scale=rate_scale, examples=counted)
