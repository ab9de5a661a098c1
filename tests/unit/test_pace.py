"""A worker chooses its local steps so that its rounds take as long as the plan says."""

import math
from dataclasses import dataclass, field

import pytest
from builders import an_update
from hypothesis import given
from hypothesis import strategies as st
from working import CountingTask

from fluffle.checked_task import CheckedTask
from fluffle.plan import Plan
from fluffle_worker.pace.pace import Pace
from fluffle_worker.pace.speed import OUTLIER, ROUNDS, UNKNOWN, Speed, StepTimes
from fluffle_worker.pace.steps import FIRST_STEPS, chosen_steps, stamped, with_chosen_steps

ROUND_S = 10.0
PLAN = Plan(round_seconds=ROUND_S, min_steps=2, max_steps=500)
seconds = st.floats(1e-3, 1e3)
anything = st.floats() | st.just(0.0) | st.none()


@dataclass
class Machine:
    """A worker on a virtual clock; `lengths` are the steps and the seconds of its rounds."""

    step_s: float
    begins_s: float = 0.0
    idle_s: float = 0.0
    compiles_s: float = 0.0
    per_call: int = 1
    clock_s: float = 100.0
    lengths: list[tuple[int, float]] = field(default_factory=list)

    def work(self, pace: Pace, rounds: int, plan: Plan = PLAN) -> list[int]:
        """Train some rounds, and return their numbers of local steps."""
        for _ in range(rounds):
            steps = pace.plan_of_round(plan).local_steps
            assert steps is not None
            began = self.clock_s
            times = pace.times(began)
            self.clock_s += self.begins_s + self.compiles_s
            self.compiles_s = 0.0
            for done in range(0, steps, self.per_call):
                self.clock_s += self.step_s * min(self.per_call, steps - done)
                times.note(min(steps, done + self.per_call), self.clock_s)
            self.clock_s += self.idle_s
            pace.note(times, self.clock_s)
            self.lengths.append((steps, self.clock_s - began))
        return [steps for steps, _ in self.lengths[-rounds:]]


def a_pace(examples: int = 0, idle_s: float = 0.0) -> Pace:
    return Pace(CheckedTask(CountingTask()), examples, idle_s)


def fits(machine: Machine) -> bool:
    """Tell whether the last round took as long as it should, but for one step, or is at a bound."""
    steps, length_s = machine.lengths[-1]
    # A clock of floats may make it one more.
    one_step_s = machine.step_s * (1 + 1e-9)
    too_short = length_s < ROUND_S - one_step_s and steps < PLAN.max_steps
    too_long = length_s > ROUND_S + one_step_s and steps > PLAN.min_steps
    return not (too_short or too_long)


@given(step_s=st.floats(0.01, 20.0), compiles_s=st.floats(0.0, 60.0), begins_s=st.floats(0.0, 3.0))
def test_rounds_take_as_long_as_the_plan_says_from_the_third_on(
    step_s: float, compiles_s: float, begins_s: float
) -> None:
    machine = Machine(step_s, begins_s=begins_s, compiles_s=compiles_s)

    first, *_ = machine.work(a_pace(), 3)

    assert first == FIRST_STEPS
    assert fits(machine)


@given(step_s=st.floats(0.01, 5.0), times=st.floats(1 / 16, 16.0), before=st.integers(1, 9))
def test_a_worker_whose_speed_changes_by_up_to_16_times_adapts_within_two_rounds(
    step_s: float, times: float, before: int
) -> None:
    machine, pace = Machine(step_s), a_pace()
    machine.work(pace, before)
    machine.step_s *= times

    machine.work(pace, 3)

    assert fits(machine)


def test_a_single_round_that_was_faster_changes_nothing_and_a_slow_one_shortens_the_next_only() -> None:
    machine, pace = Machine(0.1), a_pace()
    machine.work(pace, 4)

    machine.step_s = 0.01
    machine.work(pace, 1)
    machine.step_s = 0.1
    assert machine.work(pace, 1) == [100]
    machine.step_s = 1.0
    machine.work(pace, 1)
    machine.step_s = 0.1
    assert machine.work(pace, 3) == [10, 100, 100]


def test_idle_time_is_a_part_of_the_round_from_the_first_choice_on() -> None:
    machine = Machine(0.1, idle_s=4.0)

    assert machine.work(a_pace(idle_s=4.0), 4) == [FIRST_STEPS, 60, 60, 60]


def test_steps_that_are_executed_together_are_timed_together() -> None:
    some = Machine(0.1, per_call=25, compiles_s=9.0)
    all_of_a_round = Machine(0.1, per_call=1000, compiles_s=9.0)

    for machine in (some, all_of_a_round):
        machine.work(a_pace(), 4)
        assert fits(machine)


def test_a_second_compilation_in_the_middle_of_a_round_does_not_count() -> None:
    times = StepTimes(0.0, is_first=True)

    for done, at_s in [(1, 5.0), (2, 5.1), (3, 8.0), (4, 8.1)]:
        times.note(done, at_s)

    # (5.1 - 5.0 and 8.1 - 8.0); the other one is 29 times as long.
    assert OUTLIER < 29
    assert times.step_s() == pytest.approx(0.1)
    assert times.rest_s(9.0) is None


def test_a_task_that_reports_nothing_or_the_same_again_is_no_measurement() -> None:
    times = StepTimes(0.0, is_first=False)
    assert (times.step_s(), times.rest_s(1.0)) == (None, None)

    for done, at_s in [(3, 1.0), (3, 2.0), (1, 3.0)]:
        times.note(done, at_s)

    assert times.step_s() == pytest.approx(1 / 3)
    assert UNKNOWN.after(None) == UNKNOWN


@given(
    rounds=st.lists(st.tuples(anything, anything), max_size=12),
    least=st.integers(1, 100),
    more=st.integers(0, 10_000),
    round_s=st.floats(1e-6, 1e6),
    idle_s=st.floats(0, 1e6),
)
def test_no_measurement_leads_out_of_the_bounds(
    rounds: list[tuple[float | None, float | None]], least: int, more: int, round_s: float, idle_s: float
) -> None:
    plan = Plan(round_seconds=round_s, min_steps=least, max_steps=least + more)
    speed = UNKNOWN

    for step_s, rest_s in rounds:
        speed = speed.after(step_s, rest_s)
        assert least <= chosen_steps(plan, speed, idle_s=idle_s) <= least + more


@given(
    good=st.lists(st.tuples(seconds, seconds), min_size=1, max_size=2 * ROUNDS),
    bad=st.lists(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0]), min_size=1, max_size=5),
)
def test_a_measurement_that_is_no_number_makes_one_round_least_and_is_forgotten(
    good: list[tuple[float, float]], bad: list[float]
) -> None:
    plain = disturbed = UNKNOWN
    for step_s, rest_s in good:
        for each in bad:
            disturbed = disturbed.after(each, each)
            assert chosen_steps(PLAN, disturbed) == PLAN.min_steps
        plain, disturbed = plain.after(step_s, rest_s), disturbed.after(step_s, rest_s)

    assert disturbed == plain
    assert not disturbed.is_lost


@pytest.mark.parametrize(
    ("step_s", "said"),
    [
        (30.0, "a round of min_steps minibatches takes longer than round_seconds on this machine"),
        (0.0, "the speed of the last round could not be measured: this one has min_steps minibatches"),
    ],
)
def test_what_cannot_be_kept_is_said_once_and_the_worker_goes_on(
    step_s: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine, pace = Machine(step_s), a_pace()

    steps = machine.work(pace, 6)

    assert steps[1:] == [PLAN.min_steps] * 5
    assert caplog.text.count(said) == len(caplog.records) == 1
    machine.step_s = 0.1
    machine.work(pace, 3)
    assert fits(machine)


def test_a_round_that_is_too_long_for_what_is_not_training_says_how_long_that_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Machine(0.1, begins_s=20.0).work(a_pace(), 3)

    assert "takes longer than round_seconds" in caplog.text
    assert "'seconds_per_step': 0.1, 'other_seconds': 20.0" in caplog.text


def test_a_plan_without_seconds_is_passed_on_as_it_is() -> None:
    plan = Plan(local_steps=7)

    assert with_chosen_steps(plan, Speed((1.0,))) is plan


def test_an_update_counts_by_all_examples_of_its_site_where_workers_choose_their_steps() -> None:
    update = an_update(examples=32)

    assert stamped(update, PLAN, 500).examples == 500
    assert stamped(update, PLAN, 0).examples == 32
    assert stamped(update, Plan(local_steps=1), 500).examples == 32
    assert stamped(update, Plan(batch_size=8), 500).batch_size == 8
