"""A worker's pace: the plan of its next round, by what its last ones took."""

from fluffle.logs import get_logger
from fluffle.plan import Plan
from fluffle.update import WeightUpdate
from fluffle_worker.pace.speed import UNKNOWN, StepTimes
from fluffle_worker.pace.steps import is_too_long, stamped, with_chosen_steps

log = get_logger(__name__)


class Pace:
    """Chooses what a plan leaves to the worker, round after round.

    `examples` are those of the site, by which its updates count while its rounds may be too short for all of
    them; 0 if unknown. `idle_s` is what the worker idles in each round.
    """

    def __init__(self, examples: int = 0, idle_s: float = 0.0) -> None:
        self._examples, self._idle_s = examples, idle_s
        self._speed = UNKNOWN
        self._plan = Plan()
        self._rounds = 0
        self._said = ""

    def plan_of_round(self, plan: Plan) -> Plan:
        """Return the plan of the next round, as the task is to be given it."""
        self._plan = plan
        if plan.round_seconds is not None:
            self._say_what_does_not_fit(plan)
        return with_chosen_steps(plan, self._speed, idle_s=self._idle_s)

    def times(self, began_s: float) -> StepTimes:
        """Return what times the round that begins now."""
        return StepTimes(began_s, is_first=self._rounds == 0)

    def note(self, times: StepTimes, ended_s: float | None = None) -> None:
        """Learn from a round; from one that did not end, only how long its minibatches took."""
        self._rounds += 1
        self._speed = self._speed.after(times.step_s(), None if ended_s is None else times.rest_s(ended_s))

    def stamped(self, update: WeightUpdate) -> WeightUpdate:
        """Return the update of a round with how it was trained."""
        return stamped(update, self._plan, self._examples)

    def _say_what_does_not_fit(self, plan: Plan) -> None:
        """Warn, once until it changes, when the plan's seconds cannot be kept."""
        said, speed = "", self._speed
        if speed.is_lost:
            said = "the speed of the last round could not be measured: this one has min_steps minibatches"
        elif is_too_long(plan, speed, idle_s=self._idle_s):
            said = "a round of min_steps minibatches takes longer than round_seconds on this machine"
        if said and said != self._said:
            seconds = [float(f"{each:.3g}") for each in speed.step_s]
            log.warning(
                said,
                round_seconds=plan.round_seconds,
                min_steps=plan.min_steps,
                seconds_per_step=seconds[-1] if seconds else None,
            )
        self._said = said
