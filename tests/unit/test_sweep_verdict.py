"""What a sweep says of its best combination: its margin, or that nothing can be told."""

import math
from collections.abc import Sequence

import pytest

from fluffle.settings import load_arguments
from fluffle_cli.over_seeds import Spread
from fluffle_cli.simulate.grid import grid_of
from fluffle_cli.simulate.one_run import RunResult
from fluffle_cli.simulate.results import Failure, SweepResults
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.verdict import verdict

NEVER = math.inf


def a_result(seed: int, target_s: float) -> RunResult:
    return RunResult(
        seed=seed,
        folder=f"run-{seed}",
        seconds=min(target_s + 3, 60.0),
        updates=10,
        versions=5,
        sent_bytes=1000,
        metric="accuracy",
        target_s=target_s,
        final=0.9,
    )


def results_of(*times: Sequence[float], failures: Sequence[Failure] = ()) -> SweepResults:
    """Return a sweep over buffer_size=1,2,... whose runs took these seconds."""
    sizes = ",".join(str(each + 1) for each in range(len(times)))
    given = {"sweep": f"buffer_size={sizes}", "seeds": 5, "max_seconds": 60, "target": "0.9"}
    grid = grid_of(load_arguments(SimulateSettings, given))
    results = {
        place: [a_result(seed, seconds) for seed, seconds in enumerate(each)]
        for place, each in enumerate(times)
        if each
    }
    return SweepResults(grid, "accuracy>=0.9", 3.0, 60.0, results, failures)


def test_a_clear_margin_is_said_with_its_interval() -> None:
    said = verdict(results_of([20, 22, 18, 21, 19], [10, 11, 9, 10, 9.5]))

    assert said[0] == (
        "The best is buffer_size=2: accuracy>=0.9 held from 10.0 s (9.0 s to 11.0 s), "
        "the median over 5 seeds."
    )
    assert said[1].startswith("The next is buffer_size=1, which takes 2.02 times as long (95% interval 1.9")
    assert said[-1].endswith("--seed 5 --seeds 5 plays other ones.")
    assert not [each for each in said if "might tell" in each]


def test_a_margin_that_may_be_chance_is_not_called_one() -> None:
    said = " ".join(verdict(results_of([10, 14, 9, 12, 8], [11, 12, 10, 12, 12], [30, 31, 29, 30, 28])))

    assert "The best is buffer_size=1" in said
    assert "It cannot be told from the next, buffer_size=2" in said
    assert "buffer_size=3" not in said
    assert "more seeds might tell" in said


def test_others_that_cannot_be_told_from_the_best_are_named_too() -> None:
    said = " ".join(verdict(results_of([10, 11, 9, 10, 9.5], [20, 22, 18, 21, 19], [60, 5, 55, 50, 6])))

    assert "The next is buffer_size=2" in said
    assert "Nor can it be told from buffer_size=3." in said


def test_what_never_held_takes_at_least_so_long() -> None:
    said = verdict(results_of([10, 11, 9, 10, 9.5], [NEVER, NEVER, 50, NEVER, NEVER]))

    assert said[1].startswith("The next is buffer_size=2, which takes at least 5.8")


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (([NEVER] * 5, [5, NEVER, NEVER, NEVER, 6]), "no combination holds accuracy>=0.9 within 60 s"),
        (([], []), "no run has come to its end"),
    ],
)
def test_where_nothing_holds_nothing_is_recommended(times: Sequence[Sequence[float]], says: str) -> None:
    [said] = verdict(results_of(*times))

    assert said.startswith("Nothing can be recommended")
    assert says in said


def test_a_single_combination_is_the_best_without_a_margin() -> None:
    assert len(verdict(results_of([10, 11, 9, 10, 9.5], []))) == 1


def test_the_table_has_the_best_first_and_the_losers_too() -> None:
    found = results_of([NEVER, NEVER, 50], [10, 11, 9], [20, NEVER, 21], failures=[Failure(0, 3, "no disk")])

    heads, rows = found.table()

    assert heads[:2] == ["settings", "accuracy>=0.9 held from"]
    assert [row[:2] for row in rows] == [
        ["buffer_size=2", "10.0 s (9.0 s to 11.0 s)"],
        ["buffer_size=3", "21.0 s (20.0 s to never)"],
        ["buffer_size=1", "not within 60 s (50.0 s to never)"],
    ]
    assert [row[heads.index("held")] for row in rows] == ["3 of 3", "2 of 3", "1 of 3"]
    # Fifteen runs were planned: nine have ended, and one has failed.
    assert found.left == 5
    # The task says nothing by site or class.
    assert "worst accuracy" not in heads


def test_an_unknown_value_is_no_spread() -> None:
    assert Spread.of([]) is None
    assert Spread.of([1.0, math.nan]) is None
    assert Spread.of([1.0, 3.0, NEVER]) == Spread(3.0, 1.0, NEVER)
