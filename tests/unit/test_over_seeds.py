"""What several seeds gave together: medians, speed-ups that are honest about what never held, and bands."""

import math
from collections.abc import Sequence
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_cli.over_seeds import Speedup, Spread, band, median_speedup, worst_speedup

NEVER = math.inf
Curve = Sequence[tuple[float, float]]
seconds = st.floats(0.1, 1000) | st.just(NEVER)
curves = st.lists(
    st.dictionaries(st.integers(0, 20).map(float), st.floats(0, 1), min_size=1).map(
        lambda found: sorted(found.items())
    ),
    min_size=1,
    max_size=5,
)


def speedup(seconds: float, baseline_s: float) -> Speedup:
    return Speedup.of(seconds, baseline_s=baseline_s, watched_s=120.0)


def value_at(curve: Curve, now: float) -> float:
    return next(value for at, value in reversed(curve) if at <= now)


@pytest.mark.parametrize(
    ("seconds", "baseline_s", "expected", "words"),
    [
        (10.0, 25.0, Speedup(2.5), "2.5"),
        (50.0, 25.0, Speedup(0.5), "0.5"),
        # The baseline was watched for 120 s, and may have held its target at any time later.
        (10.0, NEVER, Speedup(12.0, is_bound=True), "at least 12.0"),
        (NEVER, 25.0, Speedup(0.0), "never"),
        (NEVER, NEVER, Speedup(0.0), "never"),
        # The first weights reach the target of both.
        (0.0, 0.0, Speedup(1.0), "1.0"),
    ],
)
def test_a_speedup_says_what_never_held_its_target(
    seconds: float, baseline_s: float, expected: Speedup, words: str
) -> None:
    assert speedup(seconds, baseline_s) == expected
    assert str(expected) == words


def test_a_median_is_a_bound_when_what_is_in_the_middle_or_below_is_one() -> None:
    exact, bound = Speedup(2.0), Speedup(3.0, is_bound=True)

    assert median_speedup([exact, exact, bound]) == Speedup(2.0)
    assert median_speedup([exact, bound, bound]) == Speedup(3.0, is_bound=True)
    assert median_speedup([exact, bound]) == Speedup(2.5, is_bound=True)
    assert median_speedup([Speedup(0.0), Speedup(0.0), exact]) == Speedup(0.0)
    assert worst_speedup([exact, bound]) == exact
    assert worst_speedup([exact, Speedup(0.0)]) == Speedup(0.0)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=7), st.floats(1, 100))
def test_the_truth_is_no_worse_than_what_a_bound_says(
    pairs: list[tuple[float, float]], factor: float
) -> None:
    # Whatever the baseline would have taken beyond the time for which it was watched.
    watched_s = max([120.0, *(one for pair in pairs for one in pair if math.isfinite(one))])
    found = [Speedup.of(mine, baseline_s=theirs, watched_s=watched_s) for mine, theirs in pairs]
    truth = [
        0.0 if math.isinf(mine) else (theirs if math.isfinite(theirs) else factor * watched_s) / mine
        for mine, theirs in pairs
    ]

    middle, worst = median_speedup(found), worst_speedup(found)

    assert median(truth) >= middle.times * (1 - 1e-9)
    assert min(truth) >= worst.times * (1 - 1e-9)
    if not middle.is_bound:
        assert median(truth) == pytest.approx(middle.times)
    if not worst.is_bound:
        assert min(truth) == pytest.approx(worst.times)


def test_a_spread_says_never_where_the_target_was_not_held() -> None:
    def said(*values: float) -> str:
        spread = Spread.of(values)
        return spread.in_words("{:.0f} s".format, never="not within 9 s") if spread else ""

    assert said(4.0) == "4 s"
    assert said(4.0, 2.0, NEVER) == "4 s (2 s to never)"
    assert said(4.0, NEVER, NEVER) == "not within 9 s (4 s to never)"
    assert said(4.0, math.nan) == ""


def test_a_band_begins_when_each_curve_has_a_value_and_what_has_ended_keeps_its_last_one() -> None:
    short, long = [(0.0, 0.1), (2.0, 0.9)], [(1.0, 0.3), (3.0, 0.5), (4.0, 0.7)]

    assert band([short, long]) == [
        (1.0, 0.2, 0.1, 0.3),
        (2.0, pytest.approx(0.6), 0.3, 0.9),
        (3.0, pytest.approx(0.7), 0.5, 0.9),
        (4.0, pytest.approx(0.8), 0.7, 0.9),
    ]
    assert band([]) == band([short, []]) == []
    assert band([[(0.0, 0.1), (1.0, math.nan), (2.0, 0.5)]]) == [(0.0, 0.1, 0.1, 0.1), (2.0, 0.5, 0.5, 0.5)]


@given(curves)
def test_a_band_holds_the_median_and_the_range_of_all_curves_at_each_time(found: list[Curve]) -> None:
    begins = max(curve[0][0] for curve in found)
    times = sorted({at for curve in found for at, _ in curve if at >= begins})

    points = band(found)

    assert [at for at, *_ in points] == times
    for at, *of_all in points:
        values = [value_at(curve, at) for curve in found]
        assert of_all == [median(values), min(values), max(values)]
