"""The statistics of a sweep: which combination is the best, and whether that is more than chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fluffle_cli.simulate.recommend import Times, margin, ranked, t_quantile

LIMIT_S = 120.0
seconds = st.floats(0.1, 1000) | st.just(math.inf)
times_by_seed = st.dictionaries(st.integers(0, 9), seconds, min_size=1)


def times(*values: float) -> Times:
    return dict(enumerate(values))


@given(confidence=st.floats(0.5, 0.9999), degrees=st.integers(1, 400))
def test_the_quantiles_are_those_of_students_t(confidence: float, degrees: int) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)

    assert t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-8)


@given(
    slower=st.lists(st.floats(1, 100), min_size=3, max_size=10),
    faster=st.lists(st.floats(1, 100), min_size=10, max_size=10),
    comparisons=st.integers(1, 20),
)
def test_the_interval_is_that_of_a_paired_t_test_of_the_logarithms(
    slower: list[float], faster: list[float], comparisons: int
) -> None:
    found = margin(times(*slower), times(*faster), limit_s=LIMIT_S, comparisons=comparisons)

    logs = np.log(np.array(slower)) - np.log(np.array(faster[: len(slower)]))
    error = logs.std(ddof=1) / math.sqrt(logs.size)
    half = stats.t.ppf(1 - 0.025 / comparisons, logs.size - 1) * error
    assert found is not None
    assert found.pairs == len(slower)
    assert math.log(found.ratio) == pytest.approx(logs.mean(), abs=1e-9)
    assert math.log(found.low) == pytest.approx(logs.mean() - half, abs=1e-6)
    assert math.log(found.high) == pytest.approx(logs.mean() + half, abs=1e-6)


@given(one=times_by_seed, other=times_by_seed)
def test_the_margin_is_the_same_seen_from_the_other_side(one: Times, other: Times) -> None:
    there, back = margin(one, other, limit_s=LIMIT_S), margin(other, one, limit_s=LIMIT_S)

    assert (there is None) == (back is None) == (not one.keys() & other.keys())
    if there and back:
        assert there.ratio == pytest.approx(1 / back.ratio)
        assert there.is_told == back.is_told
        assert there.more_seeds == back.more_seeds


def test_only_seeds_that_both_have_are_compared() -> None:
    found = margin({0: 2.0, 1: 4.0, 2: 6.0, 7: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: 99.0}, limit_s=LIMIT_S)

    assert found is not None
    assert (found.pairs, found.is_told) == (3, True)
    assert found.ratio == pytest.approx(2.0)


def test_a_run_that_never_held_its_target_counts_with_the_time_for_which_it_was_watched() -> None:
    both = margin(times(math.inf, math.inf, math.inf), times(math.inf, math.inf, math.inf), limit_s=LIMIT_S)
    one = margin(times(math.inf, math.inf, math.inf), times(60, 61, 59), limit_s=LIMIT_S)

    assert both is not None
    assert (both.ratio, both.is_told) == (1.0, False)
    assert one is not None
    assert one.ratio == pytest.approx(2.0, rel=0.01)
    assert one.is_told


@pytest.mark.parametrize("pairs", [1, 2])
def test_one_or_two_seeds_tell_nothing_however_large_the_margin(pairs: int) -> None:
    found = margin(times(*[100.0] * pairs), times(*[1.0] * pairs), limit_s=LIMIT_S)

    assert found is not None
    assert found.ratio == pytest.approx(100.0)
    assert (found.low, found.high, found.is_told, found.more_seeds) == (0.0, math.inf, False, None)


def test_as_many_more_seeds_as_it_says_would_tell_if_they_were_like_those_before() -> None:
    slower, faster = [12.0, 9.0, 15.0], [10.0, 10.0, 10.0]
    found = margin(times(*slower), times(*faster), limit_s=LIMIT_S)
    assert found is not None
    assert not found.is_told
    assert found.more_seeds is not None

    def with_more(seeds: int) -> bool:
        # The same mean and the same deviation, from more pairs.
        logs = np.log(np.array(slower) / 10)
        count = len(slower) + seeds
        half = stats.t.ppf(0.975, count - 1) * logs.std(ddof=1) / math.sqrt(count)
        return bool(half < abs(logs.mean()))

    assert with_more(found.more_seeds)
    assert not with_more(found.more_seeds - 1)


def test_in_95_of_100_sweeps_without_any_difference_nothing_is_told() -> None:
    random = np.random.default_rng(5)
    told = 0
    for _ in range(400):
        best, *others = (times(*np.exp(random.normal(2, 0.5, 5))) for _ in range(4))
        margins = [margin(each, best, limit_s=1e9, comparisons=3) for each in others]
        told += any(one.is_told for one in margins if one)

    # Bonferroni's bound, and three deviations of a count out of 400.
    assert told <= 20 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_combinations_are_ranked_by_the_median_and_one_that_mostly_never_holds_comes_last() -> None:
    found = ranked(
        [
            times(5, 6, 7),
            times(1, math.inf, math.inf),
            {},
            times(4, 4, math.inf),
            times(math.inf, math.inf, math.inf),
        ],
        limit_s=LIMIT_S,
    )

    assert found == [3, 0, 1, 4]
