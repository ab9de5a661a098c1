"""The schedules of the workers' learning rate, and how a leader carries them from record to record."""

import math

import pytest
from builders import a_model, a_strategy, an_evaluation, an_update
from hypothesis import given
from hypothesis import strategies as st

from fluffle.plan import Plan
from fluffle.record import ModelVersion, PlateauState
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.schedules import SMALLEST_SCALE, parse_schedule

NEW = PlateauState()


@pytest.mark.parametrize(
    ("text", "version", "scale"),
    [
        ("constant", 10_000, 1.0),
        ("step:10:0.1", 9, 1.0),
        ("step:10:0.1", 10, 0.1),
        ("step:10:0.1", 29, 0.01),
        ("cosine:100:0.2", 0, 1.0),
        ("cosine:100:0.2", 50, 0.6),
        ("cosine:100:0.2", 100, 0.2),
        ("cosine:100:0.2", 5000, 0.2),
        ("plateau", 10_000, 1.0),
    ],
)
def test_a_schedule_gives_the_scale_of_a_version(text: str, version: int, scale: float) -> None:
    assert parse_schedule(text).scale(version, NEW) == pytest.approx(scale)


@given(st.integers(1, 5000), st.floats(0.001, 1.0), st.integers(0, 10_000))
def test_a_cosine_falls_and_stays_between_its_end_and_one(versions: int, end: float, version: int) -> None:
    schedule = parse_schedule(f"cosine:{versions}:{end}")

    before, after = (schedule.scale(each, NEW) for each in (version, version + 1))

    assert end - 1e-12 <= after <= before <= 1.0
    expected = end + (1 - end) * (1 + math.cos(math.pi * min(1, version / versions))) / 2
    assert before == pytest.approx(max(SMALLEST_SCALE, expected))


def test_a_plateau_lowers_the_rate_after_so_many_evaluations_without_a_better_one() -> None:
    schedule = parse_schedule("plateau:2:0.5")
    state, scales = NEW, []

    for is_better in (True, False, False, False, True, False, False):
        state = schedule.after_evaluation(state, is_better=is_better)
        scales.append(schedule.scale(0, state))

    assert scales == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]


@given(st.lists(st.booleans(), max_size=60))
def test_a_plateau_never_raises_the_rate_again(betters: list[bool]) -> None:
    schedule = parse_schedule("plateau:3")
    state, before = NEW, 1.0

    for is_better in betters:
        state = schedule.after_evaluation(state, is_better=is_better)
        assert schedule.scale(0, state) <= before
        before = schedule.scale(0, state)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linear", r"must be one of constant, step\[:every\]\[:factor\], cosine"),
        ("step:0", "must be given with every at least 1, not 0"),
        ("step:10:2.0", "must be given with factor above 0 and at most 1, not 2"),
        ("cosine:100:0", "must be given with end above 0 and at most 1, not 0"),
        ("plateau:x", "patience must be a whole number, not 'x'"),
        ("plateau:1:0.5:3", "has too many parameters"),
    ],
)
def test_a_schedule_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_schedule(text)


def a_scheduled_model(schedule: str, record: ModelVersion | None = None) -> GlobalModel:
    model = a_model(a_strategy(buffer_size=1), record=record)
    return GlobalModel(
        model.record,
        strategy=model.strategy,
        plan=Plan(),
        goal=Goal(),
        term=2,
        schedule=parse_schedule(schedule),
    )


def next_record(model: GlobalModel) -> ModelVersion:
    record = model.next_record(now=0.0)
    model.advance(record)
    return record


def test_the_scale_travels_in_each_versions_plan_and_is_no_other_plan() -> None:
    model = a_scheduled_model("step:1:0.5")
    scales = []

    for sequence in range(1, 4):
        model.fold(an_update("w", sequence, base_version=model.version), now=0.0)
        scales.append(next_record(model).plan.learning_rate_scale)

    assert scales == [0.5, 0.25, 0.125]
    assert not model.has_another_plan


def test_a_successor_goes_on_with_the_plateau_of_the_leader_before_it() -> None:
    model = a_scheduled_model("plateau:2:0.5")
    for version, loss in enumerate([1.0, 2.0]):
        model.note_evaluation(an_evaluation(version, {"loss": loss}))
    record = next_record(model)

    successor = a_scheduled_model("plateau:2:0.5", record)
    successor.note_evaluation(an_evaluation(2, {"loss": 3.0}))

    assert record.plan.learning_rate_scale == 1.0
    assert next_record(successor).plan.learning_rate_scale == 0.5
