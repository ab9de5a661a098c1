"""A survey under masks: the sum of the sites' numbers says what the survey in the clear would have said."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes

from fluffle.errors import TaskError
from fluffle.secure.modulus import Modulus, Residues, add_multiple
from fluffle.secure.surveyed import (
    FINEST,
    MOST_LEAVES,
    POWERS,
    SurveySums,
    edge_of,
    fineness_of,
    leaf_of,
    leaves_of,
    numbers_of,
    size_of,
    sums_in,
)
from fluffle.survey.result import result_of
from fluffle.survey.shape import SurveyShape
from fluffle.survey.statistics import DataStatistics, statistics_of

M = Modulus(32)


def added(sites: Sequence[DataStatistics]) -> SurveySums:
    """Return what the sum of these sites says, on the way that it takes."""
    total: Residues = np.zeros(size_of(sites[0].shape), np.uint32)
    for each in sites:
        add_multiple(total, numbers_of(each))
    return sums_in(M.signed(total), sites[0].shape, len(sites))


def merged(sites: Sequence[DataStatistics]) -> DataStatistics:
    first, *others = sites
    for each in others:
        first = first.merged(each)
    return first


@given(st.floats(-(2.0**31), 2.0**31), st.integers(0, FINEST))
def test_a_value_lies_in_its_leaf(value: float, fineness: int) -> None:
    leaf = int(leaf_of(np.array([value]), fineness)[0])

    assert 0 <= leaf < leaves_of(fineness)
    middle = POWERS << fineness
    if leaf == middle:
        assert abs(value) < 2.0**-32
        return
    assert edge_of(leaf, fineness) <= value or value < 0
    assert abs(edge_of(leaf, fineness) - value) <= abs(value) * 2.0 ** (1 - fineness)
    # Leaves ascend as their values do.
    assert (leaf > middle) == (value > 0)


@pytest.mark.parametrize("value", [2.0**40, -(2.0**40), 2.0**63])
def test_a_value_beyond_the_leaves_is_in_the_last_one(value: float) -> None:
    [leaf] = leaf_of(np.array([value]), 5)

    assert leaf == (leaves_of(5) - 1 if value > 0 else 0)


@settings(max_examples=30)
@given(st.integers(1, MOST_LEAVES // 100))
def test_an_answer_stays_small_however_many_columns_there_are(columns: int) -> None:
    shape = SurveyShape(tuple(map(str, range(min(columns, 1024)))), (False,) * min(columns, 1024), -1)

    assert 4 * size_of(shape) <= 9 * 2**20
    assert fineness_of(shape) >= 2


@pytest.mark.parametrize("load", [load_breast_cancer, load_diabetes])
def test_the_sum_of_real_sites_says_what_the_survey_in_the_clear_does(load: object) -> None:
    assert callable(load)
    x, y = load(return_X_y=True)
    labels = (y > np.median(y)).astype(int)
    x = x.copy()
    x[::7, 0] = np.nan
    sites = [statistics_of(x[part::3], labels[part::3], classes=2) for part in range(3)]

    masked = result_of(added(sites), sites=3, min_count=10)
    plain = result_of(merged(sites), sites=3, min_count=10)

    assert (masked.rows, masked.names, masked.class_counts) == (plain.rows, plain.names, plain.class_counts)
    for one, two in zip(masked.columns, plain.columns, strict=True):
        assert (one.count, one.missing) == (two.count, two.missing)
        assert one.mean == pytest.approx(two.mean, rel=1e-12, abs=1e-12)
        assert one.deviation == pytest.approx(two.deviation, rel=1e-9)
        spread = two.highest - two.lowest
        assert (math.isnan(one.lowest), math.isnan(two.lowest)) == (False, False)
        np.testing.assert_allclose(one.quantiles, two.quantiles, rtol=2.0**-6, atol=spread / 500)


columns = st.lists(
    st.lists(
        st.floats(-1e6, 1e6, allow_subnormal=False) | st.integers(-5, 5).map(float) | st.just(math.nan),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(columns)
def test_means_and_deviations_are_those_of_all_rows(sites: list[list[float]]) -> None:
    x = [np.array(values)[:, np.newaxis] for values in sites]
    masked = added([statistics_of(each) for each in x])

    values = np.concatenate([each[np.isfinite(each)] for each in x])
    [column] = masked.columns
    assert (column.count, masked.rows) == (values.size, sum(map(len, sites)))
    if values.size:
        # Each site counts its values on a grid of 2**-43 of its range.
        size = float(np.max(np.abs(values))) + 1
        assert column.mean == pytest.approx(float(values.mean()), abs=1e-9 * size)
        assert column.deviation == pytest.approx(float(values.std()), abs=1e-6 * size)


@pytest.mark.parametrize("value", [0.1, 1e-9, 123_456.789, -7.3e8, 0.0])
def test_a_column_that_is_constant_at_all_sites_has_no_deviation(value: float) -> None:
    sites = [statistics_of(np.full((rows, 1), value)) for rows in (3, 1000, 77)]

    [column] = added(sites).columns

    assert column.deviation == 0.0
    assert column.mean == pytest.approx(value, rel=1e-9)


def test_images_have_several_values_in_a_row() -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 2))

    sums = added([statistics_of(x), statistics_of(x)])

    assert (sums.rows, [each.count for each in sums.columns]) == (40, [640, 640])


def test_a_site_with_thirty_thousand_small_images_can_answer() -> None:
    images = np.zeros((30_000, 28, 28, 1), np.uint8)
    images[:, 3:20, 3:20] = 7

    [pixel] = added([statistics_of(images, names=["pixel"])]).columns

    assert pixel.count == images.size
    assert pixel.mean == pytest.approx(float(images.mean()))


@pytest.mark.parametrize("sites", [3, 4096])
def test_no_digit_of_a_sum_overflows_however_many_sites_there_are(sites: int) -> None:
    x = np.random.default_rng(0).normal(-1e9, 1e9, (500, 1))
    total = np.zeros(size_of(statistics_of(x).shape), np.uint32)
    add_multiple(total, numbers_of(statistics_of(x)), sites)

    [column] = sums_in(M.signed(total), statistics_of(x).shape, sites).columns

    assert column.count == 500 * sites
    assert column.mean == pytest.approx(float(x.mean()), rel=1e-9)


def test_values_that_are_too_large_are_refused_with_the_column() -> None:
    with pytest.raises(TaskError, match=r"the column 'dose' has values of up to 3.*give it another unit"):
        numbers_of(statistics_of(np.array([[1.0, 3e30]]), names=("age", "dose")))


def test_nonsense_is_refused() -> None:
    shape = statistics_of(np.ones((5, 2))).shape
    random = np.random.default_rng(0).integers(0, 2**32, size_of(shape), np.uint32)

    with pytest.raises(ValueError, match="a digit is"):
        sums_in(M.signed(random), shape, 3)
    negative = numbers_of(statistics_of(np.ones((5, 2)))).copy()
    negative[:1] -= np.uint32(100)
    with pytest.raises(ValueError, match="fewer than no rows"):
        sums_in(M.signed(negative), shape, 3)
