"""A survey's figures are those of all rows together, in any order; small cells are left out."""

import math
from fractions import Fraction
from functools import reduce
from math import isqrt
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluffle.errors import TaskError, WireError
from fluffle.survey import MAX_COLUMNS, DataStatistics, SurveyResult, statistics_of
from fluffle.survey.packing import pack, unpack
from fluffle.survey.result import LEVELS, result_of

Floats = NDArray[np.float64]

# What columns are like: of any size, around a large mean, of few values, constant, and with holes.
any_floats = st.floats(allow_nan=True, allow_infinity=True)
far_off = st.floats(-1, 1).map(lambda each: 1e9 + 1e-4 * each)
whole = st.integers(-3, 40).map(float)
tiny = st.floats(-5e-310, 5e-310)
constant = st.just(5.3) | st.just(0.0)
columns = st.sampled_from([any_floats, far_off, whole, tiny, constant])
# The rows of one to four sites, as one column of each.
sites_of_a_column = columns.flatmap(
    lambda values: st.lists(st.lists(values, min_size=1, max_size=30), min_size=1, max_size=4)
)


def statistics_of_sites(sites: list[list[float]]) -> list[DataStatistics]:
    return [statistics_of(np.array(site)) for site in sites]


def a_table(*names: str, classes: int = 0) -> DataStatistics:
    return statistics_of(np.ones((5, len(names))), np.zeros(5, int), names=names, classes=classes)


def merged(parts: list[DataStatistics]) -> DataStatistics:
    return reduce(DataStatistics.merged, parts)


def published(parts: list[DataStatistics], min_count: int = 1) -> SurveyResult:
    return result_of(merged(parts), sites=len(parts), min_count=min_count)


def there(sites: list[list[float]]) -> Floats:
    """Return all finite values, in ascending order."""
    values = np.concatenate([np.array(site) for site in sites])
    return np.sort(values[np.isfinite(values)])


def exact_moments(values: Floats) -> tuple[Fraction, float]:
    """Return the mean of values, and their standard deviation, without rounding in between."""
    numbers = [Fraction(float(each)) for each in values]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    variance = sum(((each - mean) ** 2 for each in numbers), Fraction(0)) / len(numbers)
    # A root of 128 bits, whatever the size.
    shift = 2 * (2200 + 64)
    return mean, float(
        Fraction(isqrt((variance.numerator << shift) // variance.denominator), 1 << shift // 2)
    )


@given(sites_of_a_column)
def test_mean_and_deviation_are_those_of_the_pooled_values_to_a_millionth_of_the_deviation(
    sites: list[list[float]],
) -> None:
    values = there(sites)
    [column] = published(statistics_of_sites(sites)).columns

    if not values.size:
        assert math.isnan(column.mean)
        return
    mean, deviation = exact_moments(values)
    # A float64 cannot tell more than this of a mean that is far off.
    rounding = abs(float(mean)) * 2.0**-52 + 5e-324
    assert abs(Fraction(column.mean) - mean) <= Fraction(1e-6 * deviation + rounding)
    assert column.deviation == pytest.approx(deviation, rel=1e-6, abs=1e-320)
    assert column.count == values.size
    assert column.missing == sum(map(len, sites)) - values.size


@given(sites_of_a_column)
def test_quantiles_and_ends_are_those_of_the_pooled_values_to_a_1024th_of_the_range(
    sites: list[list[float]],
) -> None:
    values = there(sites)
    [column] = published(statistics_of_sites(sites)).columns

    if values.size < 2:
        assert np.isnan(column.quantiles).all()
        return
    ranks = [max(1, math.ceil(level * values.size)) for level in LEVELS]
    wanted = [values[0], *(values[rank - 1] for rank in ranks), values[-1]]
    reach = Fraction(float(values[-1])) - Fraction(float(values[0]))
    for found, value in zip([column.lowest, *column.quantiles, column.highest], wanted, strict=True):
        below = Fraction(float(value)) - Fraction(found)
        rounding = Fraction(abs(float(value)) * 2.0**-52 + 5e-324) + reach / 2**60
        assert -rounding <= below <= reach / 1024 + rounding


@given(sites_of_a_column, st.randoms(use_true_random=False))
def test_neither_the_order_of_the_answers_nor_their_grouping_changes_a_bit(
    sites: list[list[float]], random: Random
) -> None:
    parts = statistics_of_sites(sites)
    one_by_one = pack(merged(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)
    while len(shuffled) > 1:
        # Any two neighbours next, as a tree of mergers would.
        at = random.randrange(len(shuffled) - 1)
        shuffled[at : at + 2] = [shuffled[at].merged(shuffled[at + 1])]

    assert pack(shuffled[0]) == one_by_one


@given(sites_of_a_column)
def test_what_is_packed_is_unpacked(sites: list[list[float]]) -> None:
    for statistics in [*statistics_of_sites(sites), merged(statistics_of_sites(sites))]:
        packed = pack(statistics)
        assert pack(unpack(memoryview(packed))) == packed


@given(st.lists(whole, min_size=1, max_size=20), st.data())
def test_bytes_that_were_changed_are_refused_or_could_have_come_from_data(
    values: list[float], data: st.DataObject
) -> None:
    packed = bytearray(pack(statistics_of(np.array(values), np.zeros(len(values), int), classes=2)))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))

    try:
        found = unpack(memoryview(bytes(packed)))
    except WireError:
        return
    # It can be merged and published.
    [column] = result_of(found.merged(found), sites=2, min_count=1).columns
    assert math.isnan(column.mean) or column.deviation >= 0


def test_nothing_is_published_that_stands_for_fewer_rows_than_the_least_count() -> None:
    rows = 200
    x = np.c_[np.arange(rows), np.where(np.arange(rows) < 5, np.nan, 1.0), np.full(rows, np.nan)]
    x[:4, 2] = 7
    labels = np.repeat([0, 1, 2, 3], [100, 60, 33, 7])

    result = result_of(statistics_of(x, labels, classes=5), sites=1, min_count=10)
    plain, holed, rare = result.columns

    assert (plain.lowest, plain.highest) == (9, 190)
    assert np.isnan(plain.quantiles).tolist() == [level < 0.05 or level > 0.95 for level in LEVELS]
    # Five missing values cannot be told from rows and values.
    assert math.isnan(holed.missing)
    assert math.isnan(holed.count)
    assert holed.mean == 1
    assert all(map(math.isnan, (rare.count, rare.missing, rare.mean, rare.deviation, rare.lowest)))
    # Class 3 is small; the next one is left out too, since the sum of all is known.
    assert result.class_counts == (100, 60, None, None, 0)
    assert result.class_prior is not None
    assert result.class_prior[4] == 0
    assert result.class_prior[3] > 0


def test_integers_and_flags_come_out_exactly() -> None:
    x = np.c_[np.arange(1000) % 2, np.arange(1000) % 1000]

    flags, numbers = result_of(statistics_of(x), sites=1, min_count=1).columns

    assert set(flags.quantiles.tolist()) == {0.0, 1.0}
    assert numbers.quantiles.tolist() == [round(level * 1000) - 1 for level in LEVELS]
    assert (numbers.lowest, numbers.highest) == (0, 999)


def test_images_are_surveyed_by_channel_whatever_their_sizes_and_told_apart_from_tables() -> None:
    # As is asked for in fedbiomed/fedbiomed#1564.
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)

    found = statistics_of(images)

    assert found.names == ("0", "1", "2")
    [red, *_] = result_of(found, sites=1, min_count=1).columns
    assert red.count == 20 * 64
    assert red.mean == pytest.approx(images[..., 0].mean())
    smaller = statistics_of(images[:7, :4])
    assert found.difference(smaller) == ""
    assert result_of(found.merged(smaller), sites=2, min_count=1)["0"].count == 20 * 64 + 7 * 32
    table = statistics_of(images[:, 0, 0])
    assert found.difference(table).startswith("a row of it has one value of the column '0'")


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_the_variance_of_equal_values_is_never_below_zero(rows: int) -> None:
    """OSGeo/grass#101 and ClickHouse/ClickHouse#10532: rounded sums of squares made a root of less than 0."""
    column = np.full(rows, -0.14357562916991)
    parts = [statistics_of(column), statistics_of(column), statistics_of(column[:1])]

    [found] = published(parts).columns

    assert (found.mean, found.deviation) == (-0.14357562916991, 0.0)


def test_a_site_without_any_value_of_a_column_stops_nobody() -> None:
    """NVIDIA/NVFlare#4890: a site whose images could not be read ended the statistics of all."""
    x = np.random.default_rng(0).normal(size=(60, 2))
    holed = x.copy()
    holed[:, 1] = np.nan

    result = published([statistics_of(holed), statistics_of(x), statistics_of(holed)])

    assert result.columns[1].count == 60
    assert result.columns[1].missing == 120
    assert result.columns[1].mean == pytest.approx(x[:, 1].mean())


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (a_table("age", "height", "pulse"), "3 columns, and the others have 2"),
        (a_table("age", "weight"), "its column 1 is 'weight', and that of"),
        (a_table("age", "height", classes=3), "it has 3 classes"),
    ],
)
def test_a_difference_of_columns_or_classes_is_named(other: DataStatistics, says: str) -> None:
    own = a_table("age", "height")

    assert says in own.difference(other)
    assert own.difference(own) == ""


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        (np.ones((3, MAX_COLUMNS + 1)), {}, "1 to 1024 columns along the last axis"),
        (np.ones((0, 3)), {}, "no row to survey"),
        (np.array([["a"], ["b"]]), {}, "turn it into numbers"),
        (np.ones((2, 2)), {"names": ["a", "a"]}, "each with a name of its own"),
        (np.ones((2, 2)), {"labels": np.array([0, 7]), "classes": 3}, "the labels 0 to 2, and found 7"),
    ],
)
def test_rows_that_cannot_be_surveyed_are_refused_with_a_sentence(
    x: Floats, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(TaskError, match=says):
        statistics_of(x, **options)
