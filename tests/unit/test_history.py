"""What is kept of a federation's past: right, and of bounded size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_cli import history as history_module
from fluffle_cli.history import (
    MOST_LOSSES,
    MOST_POINTS,
    MOST_VERSIONS,
    ROUNDS_ALONE,
    History,
    Rounds,
    Series,
)


def is_of_two(runs: str) -> bool:
    rounds = Rounds()
    for run in runs:
        rounds.add(run, None, 1.0)
    return rounds.is_of_two


def test_an_evaluation_counts_once_and_stands_at_the_time_of_its_version() -> None:
    history = History()
    for version in (0, 1, 2):
        history.note_seconds(version, 2.0 * version)
    for version in (0, 1, 1, 0):
        history.note_evaluation(version, {"loss": 1.0})

    assert [(each.version, each.seconds) for each in history.evaluations] == [(0, 0.0), (1, 2.0)]
    assert history.seconds_of(2) == 4.0
    assert history.seconds_of(3) is None


def test_a_worker_that_reports_no_loss_has_no_curve() -> None:
    history = History()
    history.note_round("w1", "r", None, 2.0)

    assert list(history.rounds["w1"].losses) == []
    assert history.rounds["w1"].seconds == 2.0


@given(st.lists(st.floats(-1e6, 1e6), max_size=500))
def test_a_curve_of_losses_is_bounded_and_keeps_its_range(losses: list[float]) -> None:
    rounds = Rounds()
    for loss in losses:
        rounds.add("r", loss, 1.0)

    assert len(rounds.losses) <= min(len(losses), MOST_LOSSES)
    assert bool(rounds.losses) == bool(losses)
    assert all(min(losses) - 1e-6 <= each <= max(losses) + 1e-6 for each in rounds.losses)


def test_a_loss_that_is_not_finite_stays_visible_in_a_long_curve() -> None:
    rounds = Rounds()
    for number in range(10 * MOST_LOSSES):
        rounds.add("r", math.nan if number == 77 else 1.0, 1.0)

    assert sum(math.isnan(each) for each in rounds.losses) == 1


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ("aaaa", False),
        ("aaabbb", False),  # it was started again
        ("aaabab", True),
        ("abab", True),
        ("aba", False),  # one update of the old run came late
        ("abcde", False),  # it is started again and again
        ("abab" + (ROUNDS_ALONE - 1) * "b", True),
        ("abab" + ROUNDS_ALONE * "b", False),  # the other one is gone
    ],
)
def test_two_processes_under_one_name_are_known_by_runs_that_take_turns(runs: str, *, expected: bool) -> None:
    assert is_of_two(runs) is expected


@given(st.lists(st.integers(1, 30), max_size=20))
def test_a_worker_that_is_started_again_however_often_is_no_second_process(rounds: list[int]) -> None:
    runs = Rounds()
    for run, many in enumerate(rounds):
        for _ in range(many):
            runs.add(str(run), 1.0, 1.0)

    assert not runs.is_of_two


def test_nothing_grows_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MOST_WORKERS", 10)
    history = History()
    for number in range(2 * MOST_VERSIONS):
        history.note_seconds(number, float(number))
        history.note_evaluation(number, {"loss": 1.0})
        history.note_round(f"w{number}", "r", 1.0)

    assert len(history.rounds) == 10
    assert len(history.evaluations) <= MOST_VERSIONS
    assert history.seconds_of(0) is None
    assert history.evaluations[-1].version == 2 * MOST_VERSIONS - 1


@given(st.lists(st.integers(-5, 5), max_size=3_000))
def test_a_curve_keeps_its_sum_and_its_bounds(values: list[int]) -> None:
    series: Series[int] = Series(lambda earlier, later: earlier + later, most=8)
    for value in values:
        series.add(value)

    assert sum(series.points) == sum(values)
    assert len(series.points) <= min(8, MOST_POINTS)
