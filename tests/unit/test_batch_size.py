"""`--batch-size auto`: which size a worker settles on, and which learning rate goes with it."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import CountingTask

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, OutOfMemory, TaskError
from fluffle.plan import Plan
from fluffle.settings import load_arguments
from fluffle_aggregator.batch_sizes import parse_batch_size
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.pace.batch import GROWTH, ROUNDS_PER_SIZE, WARM_UP, BatchSize, Memory, with_batch_size
from fluffle_worker.pace.pace import Pace

MIB = 2**20
ANY_MEMORY = Memory()
PLAN = Plan(batch_size=32, max_batch_size=512)


def search(
    overhead_s: float, example_s: float, *, first: int = 32, bound: int = 4096, memory: Any = None
) -> list[BatchSize]:
    """Return the states of a search where a minibatch takes so long, and so much longer for each example."""
    batch = BatchSize(first, first)
    states = [batch]
    while not batch.is_settled:
        taken = memory(batch.size) if memory else ANY_MEMORY
        batch = batch.after(overhead_s + example_s * batch.size, bound, taken)
        states.append(batch)
        assert len(states) < 100
    return states


@given(overhead_s=st.floats(1e-4, 1.0), example_s=st.floats(1e-6, 1e-1), bound=st.integers(32, 5000))
def test_the_size_doubles_while_that_trains_a_tenth_more_examples_in_a_second(
    overhead_s: float, example_s: float, bound: int
) -> None:
    def examples_per_s(size: int) -> float:
        return size / (overhead_s + example_s * size)

    settled = search(overhead_s, example_s, bound=bound)[-1].size

    assert 32 <= settled <= bound
    sizes = [32 * 2**power for power in range(20)]
    for size in sizes[: sizes.index(settled)]:
        assert examples_per_s(2 * size) >= GROWTH * examples_per_s(size) * (1 - 1e-9)
    if 2 * settled <= bound:
        assert examples_per_s(2 * settled) < GROWTH * examples_per_s(settled) * (1 + 1e-9)


def test_each_size_is_measured_twice_and_counts_by_its_faster_round() -> None:
    batch = BatchSize(32, 32)

    # A pause in one of two rounds changes nothing.
    for step_s in (0.01, 5.0, 0.011, 5.0, 0.015, 0.015):
        batch = batch.after(step_s, 4096, ANY_MEMORY)

    assert ROUNDS_PER_SIZE == 2
    assert (batch.size, batch.is_settled) == (256, False)


def test_what_is_no_duration_is_no_measurement() -> None:
    batch = BatchSize(32, 32)

    for wrong in (None, math.nan, 0.0, -1.0, math.inf):
        assert batch.after(wrong, 4096, ANY_MEMORY) == batch


def test_a_settled_size_stays() -> None:
    settled = search(0.0, 0.1)[-1]

    assert settled.after(1e-9, 4096, ANY_MEMORY) == settled
    assert (settled.size, settled.is_settled) == (32, True)
    assert "minibatches of 64 trained 10 examples in a second, and those of half the size 10" in settled.why


def test_the_size_stays_below_what_memory_allows() -> None:
    # 100 MiB, and one for each example.
    settled = search(0.1, 0.0, memory=lambda size: Memory((100 + size) * MIB, 500 * MIB))[-1]

    # 256 examples take 356 MiB, 128 more than 128 did; 512 would take 612.
    assert settled.size == 256
    assert settled.why == "twice as many examples would need some 612 MiB of memory, and 500 may be taken"
    assert search(0.1, 0.0, memory=lambda _: Memory(600 * MIB, 500 * MIB))[-1].size == 32


def test_a_round_that_runs_out_of_memory_halves_the_size_for_good() -> None:
    batch = BatchSize(32, 128)
    sizes = []

    while (halved := batch.out_of_memory()) is not None:
        batch = halved
        sizes.append(batch.size)

    assert sizes == [64, 32, 16, 8, 4, 2, 1]
    assert batch.is_settled


@given(
    sizes=st.lists(st.sampled_from([1, 8, 32, 64, 256, 1024]), min_size=1, max_size=20),
    power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_learning_rate_grows_step_by_step_and_falls_at_once(sizes: list[int], power: float) -> None:
    batch, before = BatchSize(32, 32), 1.0

    for size in sizes:
        batch = BatchSize(32, size, rate_scale=batch.rate_scale).next_rate_scale(power)
        wanted = (size / 32) ** power
        assert batch.rate_scale <= wanted
        assert batch.rate_scale <= max(1.0, before) * WARM_UP
        assert batch.rate_scale == wanted or batch.rate_scale == max(1.0, before) * WARM_UP
        before = batch.rate_scale


def test_the_plan_of_a_round_has_the_size_and_the_rate_for_it() -> None:
    plan = with_batch_size(Plan(learning_rate_scale=0.5), BatchSize(32, 128, rate_scale=2.0))

    assert (plan.batch_size, plan.learning_rate_scale) == (128, 1.0)


class Resizable(CountingTask):
    """A task whose learning rate grows with this power of the size."""

    def __init__(self, power: object) -> None:
        super().__init__()
        self._power = power

    def learning_rate_power(self) -> object:
        """See ResizableTask; a wrong value is refused."""
        return self._power


def paced(pace: Pace, rounds: int, step_s: float = 0.01, plan: Plan = PLAN) -> list[Plan]:
    """Let rounds be trained, each of five minibatches that take as long whatever their size."""
    plans = []
    for number in range(rounds):
        plans.append(pace.plan_of_round(plan))
        times = pace.times(float(number))
        for done in range(1, 6):
            times.note(done, number + done * step_s)
        pace.note(times, number + 0.9)
    return plans


def test_a_worker_tries_larger_minibatches_up_to_the_plans_bound_with_the_rate_that_suits_them() -> None:
    plans = paced(Pace(CheckedTask(Resizable(0.5))), 20)

    assert [plan.batch_size for plan in plans][:8] == [32, 32, 64, 64, 128, 128, 256, 256]
    assert plans[-1].batch_size == 512
    assert plans[-1].learning_rate_scale == 4.0
    scales = [plan.learning_rate_scale for plan in plans]
    assert all(after <= before * WARM_UP for before, after in pairwise(scales))


def test_no_minibatch_is_larger_than_the_sites_data() -> None:
    plans = paced(Pace(CheckedTask(Resizable(1.0)), examples=200), 20)

    assert plans[-1].batch_size == 128


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (CountingTask(), "the task does not say how its learning rate follows the size"),
        (Resizable(None), "the data comes in minibatches of its own size"),
    ],
)
def test_where_the_size_cannot_change_that_is_said_once(
    task: CountingTask, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    pace = Pace(CheckedTask(task))

    plans = paced(pace, 6)

    assert {plan.batch_size for plan in plans} == {32}
    assert caplog.text.count(says) == 1
    assert caplog.text.count("batch_size auto has no effect at this site") == 1


@pytest.mark.parametrize("wrong", ["one", -1, 2, math.nan])
def test_a_power_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(TaskError, match="learning_rate_power must return a number from 0 to 1, or None, not"):
        Pace(CheckedTask(Resizable(wrong))).plan_of_round(PLAN)


def test_another_plan_begins_the_search_anew() -> None:
    pace = Pace(CheckedTask(Resizable(1.0)))
    paced(pace, 8)

    assert pace.plan_of_round(Plan(batch_size=16, max_batch_size=512)).batch_size == 16
    assert pace.plan_of_round(Plan(batch_size=16, max_batch_size=None)).batch_size == 16


def test_after_memory_ran_out_the_rate_falls_with_the_size_and_the_size_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pace = Pace(CheckedTask(Resizable(1.0)))
    fixed = Plan(batch_size=32)
    pace.plan_of_round(fixed)

    pace.halve(OutOfMemory("train ran out of memory: MemoryError"))
    pace.plan_of_round(fixed)
    pace.halve(OutOfMemory("train ran out of memory: MemoryError"))

    plan = pace.plan_of_round(fixed)
    assert (plan.batch_size, plan.learning_rate_scale) == (8, 0.25)
    assert caplog.text.count("out of memory: the round is trained again with half the minibatch") == 2
    assert {each.batch_size for each in paced(pace, 3, plan=fixed)} == {8}


def test_memory_that_runs_out_with_one_example_is_an_error_that_says_so() -> None:
    pace = Pace(CheckedTask(Resizable(1.0)))
    pace.plan_of_round(Plan(batch_size=1))

    with pytest.raises(OutOfMemory, match="One example at a time is too much already"):
        pace.halve(OutOfMemory("train ran out of memory"))


def test_memory_that_runs_out_where_the_size_is_the_tasks_own_is_an_error_that_says_so() -> None:
    pace = Pace(CheckedTask(CountingTask()))
    pace.plan_of_round(Plan())

    with pytest.raises(OutOfMemory, match="The size of the minibatches is the task's own"):
        pace.halve(OutOfMemory("train ran out of memory"))


def test_minibatches_of_a_new_size_are_taken_to_last_in_proportion_until_they_are_measured() -> None:
    pace = Pace(CheckedTask(Resizable(1.0)))
    plan = Plan(batch_size=32, max_batch_size=512, round_seconds=1.0)

    plans = paced(pace, 4, step_s=0.01, plan=plan)

    # 0.85 s of each round are none of its minibatches.
    assert [(each.batch_size, each.local_steps) for each in plans] == [(32, 4), (32, 100), (64, 7), (64, 15)]


@pytest.mark.parametrize(
    ("text", "found"),
    [("64", (64, False)), ("auto", (32, True)), ("auto:8", (8, True)), ("1", (1, False))],
)
def test_the_size_is_a_number_or_auto_with_a_first_one(text: str, found: tuple[int, bool]) -> None:
    assert parse_batch_size(text) == found


@pytest.mark.parametrize("text", ["0", "-1", "auto:", "auto:0", "auto:x", "", "many", "1.5", "²"])
def test_another_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="batch_size must be a number of examples from 1 up, or auto"):
        load_arguments(AggregatorSettings, {"batch_size": text})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_batch_size": 64}, "max_batch_size has no effect without batch_size auto"),
        ({"batch_size": "auto:64", "max_batch_size": 63}, "begins with 64, and max_batch_size is 63"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(given: dict[str, Any], says: str) -> None:
    chosen = load_arguments(AggregatorSettings, given)

    with pytest.raises(ConfigError, match=says):
        chosen.make_plan(chosen.make_strategy())


def test_the_plan_says_the_first_size_and_the_bound_and_updates_are_normalised() -> None:
    chosen = load_arguments(AggregatorSettings, {"batch_size": "auto:16", "max_batch_size": 256})
    fixed = load_arguments(AggregatorSettings, {"batch_size": 16})

    strategy = chosen.make_strategy()
    assert strategy.normalizes_steps
    plan = chosen.make_plan(strategy)
    assert (plan.batch_size, plan.max_batch_size) == (16, 256)
    assert fixed.make_plan(fixed.make_strategy()).max_batch_size is None


def test_a_simulation_cannot_find_a_size() -> None:
    with pytest.raises(ConfigError, match="batch_size auto finds nothing: give a number"):
        load_arguments(SimulateSettings, {"batch_size": "auto", "max_updates": 9}).check()
