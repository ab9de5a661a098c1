"""A worker's pace: the plan of its next round, by what its last ones took."""

from dataclasses import replace

from fluffle.checked_task import CheckedTask
from fluffle.errors import OutOfMemory
from fluffle.logs import get_logger
from fluffle.plan import Plan
from fluffle.update import WeightUpdate
from fluffle_worker.pace.batch import BatchSize, Memory, with_batch_size
from fluffle_worker.pace.memory import memory_of_process
from fluffle_worker.pace.speed import UNKNOWN, Speed, StepTimes, usual
from fluffle_worker.pace.steps import is_too_long, stamped, with_chosen_steps

log = get_logger(__name__)

TOO_LONG = "a round of min_steps minibatches takes longer than round_seconds on this machine"


class Pace:
    """Chooses what a plan leaves to the worker, round after round.

    `examples` are those of the site, by which its updates count while its rounds may be too short for all of
    them; 0 if unknown. `idle_s` is what the worker idles in each round, and `memory_mib` what its process may
    take for larger minibatches and parts.
    """

    def __init__(
        self, task: CheckedTask, examples: int = 0, idle_s: float = 0.0, memory_mib: int | None = None
    ) -> None:
        self._task, self._examples, self._idle_s, self._memory_mib = task, examples, idle_s, memory_mib
        self._speed = UNKNOWN
        self._batch = BatchSize(0, 0)
        # Of the federation's newest plan, and of the round that is trained now.
        self._plan = self._round_plan = Plan()
        self._power: float | None = None
        # Of the last round; the next one compiles the training step if its own is another.
        self._trained_size = 0
        self._said = ""

    def plan_of_round(self, plan: Plan) -> Plan:
        """Return the plan of the next round, as the task is to be given it."""
        if not self._batch.size or _sizes(plan) != _sizes(self._plan):
            self._begin_search(plan)
        self._plan = plan
        self._batch = self._batch.next_rate_scale(self._power or 0.0)
        speed = self._expected_speed()
        if plan.round_seconds is not None:
            self._say_what_does_not_fit(plan, speed)
        sized = with_batch_size(plan, self._batch)
        self._round_plan = with_chosen_steps(sized, speed, idle_s=self._idle_s)
        return self._round_plan

    def times(self, began_s: float) -> StepTimes:
        """Return what times the round that begins now."""
        return StepTimes(began_s, is_first=self._trained_size != self._batch.size)

    def note(self, times: StepTimes, ended_s: float | None = None) -> None:
        """Learn from a round; from one that did not end, only how long its minibatches took."""
        step_s = times.step_s()
        if self._batch.size != self._trained_size:
            # What a minibatch of another size took says nothing any more.
            self._speed = self._expected_speed() if step_s is None else Speed(rest_s=self._speed.rest_s)
            self._trained_size = self._batch.size
        self._speed = self._speed.after(step_s, None if ended_s is None else times.rest_s(ended_s))
        if self._batch.is_settled:
            return
        after = self._batch.after(step_s, self._largest(self._plan), self.memory())
        if after.is_settled:
            log.info("minibatches keep their size", batch_size=after.size, because=after.why)
        elif after.size != self._batch.size:
            log.info(
                "trying larger minibatches",
                batch_size=after.size,
                examples_per_s=_short(after.examples_per_s),
            )
        self._batch = after

    def halve(self, error: OutOfMemory) -> None:
        """Let the round that ran out of memory be trained again with half the minibatch.

        Raises OutOfMemory where that cannot help.
        """
        size, after = self._batch.size, self._batch.out_of_memory()
        if self._power is None:
            raise OutOfMemory(
                f"{error}. The size of the minibatches is the task's own: make them smaller there"
            ) from error
        if after is None:
            raise OutOfMemory(
                f"{error}. One example at a time is too much already: this machine needs more memory, or the "
                "federation a smaller model"
            ) from error
        log.warning(
            "out of memory: the round is trained again with half the minibatch",
            batch_size=after.size,
            before=size,
            because=str(error),
        )
        self._batch = after

    def stamped(self, update: WeightUpdate) -> WeightUpdate:
        """Return the update of a round with how it was trained."""
        # A task that has minibatches of its own does not say of what size.
        size = 0 if self._task.may_resize and self._power is None else self._round_plan.batch_size
        return stamped(
            update, self._round_plan, self._examples, batch_size=size, rate_scale=self._batch.rate_scale
        )

    def memory(self) -> Memory:
        """Return what the process has taken at most so far, and may take."""
        return memory_of_process(self._memory_mib)

    def is_too_slow(self) -> str:
        """Say that the last rounds were all too slow for the plan's seconds; empty if one was not."""
        fastest = replace(self._speed, step_s=self._speed.step_s and (min(self._speed.step_s),))
        return TOO_LONG if is_too_long(self._plan, fastest, idle_s=self._idle_s) else ""

    def forget_speed(self) -> None:
        """Measure anew: the next round trains another part of the model, and compiles its training step."""
        self._speed, self._trained_size = UNKNOWN, 0

    def _expected_speed(self) -> Speed:
        """Return the speed with minibatches of the next size, which take longer in proportion at most."""
        if self._trained_size in (0, self._batch.size):
            return self._speed
        return self._speed.times(self._batch.size / self._trained_size)

    def _begin_search(self, plan: Plan) -> None:
        self._power = self._task.learning_rate_power()
        is_open = self._power is not None and self._largest(plan) > plan.batch_size
        self._batch = BatchSize(plan.batch_size, plan.batch_size, is_settled=not is_open)
        if plan.max_batch_size is not None and self._power is None:
            log.warning(
                "batch_size auto has no effect at this site",
                because="the data comes in minibatches of its own size"
                if self._task.may_resize
                else "the task does not say how its learning rate follows the size (learning_rate_power)",
            )

        if is_open and self._memory_mib is not None and self.memory().most is None:
            log.warning("memory_mib has no effect", because="this system does not say what a process takes")

    def _largest(self, plan: Plan) -> int:
        """Return the largest size: no minibatch is larger than the site's data."""
        largest = plan.max_batch_size or plan.batch_size
        return min(largest, self._examples) if self._examples else largest

    def _say_what_does_not_fit(self, plan: Plan, speed: Speed) -> None:
        """Warn, once until it changes, when the plan's seconds cannot be kept."""
        said = ""
        if speed.is_lost:
            said = "the speed of the last round could not be measured: this one has min_steps minibatches"
        elif is_too_long(plan, speed, idle_s=self._idle_s):
            said = TOO_LONG
        if said and said != self._said:
            log.warning(
                said,
                round_seconds=plan.round_seconds,
                min_steps=plan.min_steps,
                seconds_per_step=_short(speed.step_s[-1]) if speed.step_s else None,
                other_seconds=_short(usual(speed.rest_s)) if speed.rest_s else None,
            )
        self._said = said


def _sizes(plan: Plan) -> tuple[int, int | None]:
    return plan.batch_size, plan.max_batch_size


def _short(value: float) -> float:
    """Return a number with three digits."""
    return float(f"{value:.3g}")
