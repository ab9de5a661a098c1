"""A target has held when every evaluation within some seconds reaches it, however many those are."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_aggregator.goal import parse_target
from fluffle_cli.held import GoalByTime, held_from

TARGET = parse_target("accuracy>=0.9")
GOOD, BAD = 0.95, 0.5
Curve = Sequence[tuple[float, float]]
curves = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([GOOD, BAD])), max_size=30).map(sorted)


def held(curve: Curve, *, hold_s: float = 3.0, until_s: float = 100.0) -> float | None:
    return held_from(curve, TARGET, hold_s=hold_s, until_s=until_s)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], None),
        ([(1, BAD), (2, BAD)], None),
        ([(1, BAD), (2, GOOD)], 2),
        # Six good evaluations within half a second are not enough.
        ([(1 + at / 10, GOOD) for at in range(6)] + [(2, BAD)], None),
        ([(1, GOOD), (3, BAD), (4, GOOD), (5, GOOD), (9, BAD)], 4),
        # Rounds of ten seconds: the version made after 10 s is in use for all of 3 s.
        ([(10, GOOD), (20, BAD)], 10),
        # The end does not belong to the span: the version that is made then ends the federation.
        ([(1, GOOD), (4, BAD), (5, GOOD)], 1),
        ([(1, GOOD), (3.9, BAD), (5, GOOD)], 5),
        ([(1, float("nan")), (2, GOOD)], 2),
    ],
)
def test_a_target_is_held_from_the_first_version_of_a_span_in_which_all_reach_it(
    curve: Curve, expected: float | None
) -> None:
    assert held(curve) == expected


def test_a_span_that_ends_after_the_run_is_not_known_to_hold() -> None:
    assert held([(8, GOOD)], until_s=10.9) is None
    assert held([(8, GOOD)], until_s=11.0) == 8
    # Times are rounded to a millisecond where they are written down.
    assert held([(8, GOOD)], until_s=10.9995) == 8


@given(curve=curves, hold_s=st.integers(0, 20), until_s=st.integers(0, 60))
def test_it_is_the_first_of_all_spans_that_hold(curve: Curve, hold_s: int, until_s: int) -> None:
    # A run is watched at least until its last evaluation.
    until_s = max([until_s, *(int(at) for at, _ in curve)])
    spans = (
        (began, [first, *(value for at, value in curve[place + 1 :] if at < began + hold_s)])
        for place, (began, first) in enumerate(curve)
        if began + hold_s <= until_s
    )
    expected = next((began for began, values in spans if set(values) == {GOOD}), None)

    assert held(curve, hold_s=hold_s, until_s=until_s) == expected


@given(curve=curves.filter(bool), hold_s=st.integers(1, 20))
def test_a_goal_by_time_ends_a_federation_no_sooner_than_its_target_has_held(
    curve: Curve, hold_s: int
) -> None:
    goal, streak = GoalByTime(target=TARGET, hold_s=hold_s), 0
    ended: float | None = None
    for seconds, value in curve:
        # Asked before the evaluation, as time has passed, and after it.
        for metrics in (None, {"accuracy": value}):
            streak = streak if metrics is None else goal.held(streak, metrics)
            said = goal.reached(version=1, updates=1, training_s=seconds, target_held=streak)
            if said and ended is None:
                assert said == f"accuracy>=0.9 held for {hold_s} s"
                ended = seconds

    began = held([each for each in curve if ended is None or each[0] < ended], hold_s=hold_s, until_s=1000)

    if ended is not None:
        assert began is not None
        assert ended >= began + hold_s


def test_a_goal_by_time_keeps_the_other_ends() -> None:
    goal = GoalByTime(target=TARGET, hold_s=3, max_updates=5, max_seconds=60)

    assert goal.reached(version=1, updates=4, training_s=1, target_held=100) == ""
    assert goal.reached(version=1, updates=5, training_s=1, target_held=100) == "5 updates were applied"
    assert goal.reached(version=1, updates=4, training_s=60, target_held=0) == "60 seconds have passed"
