"""What sites measure, over all of them: the same as on their data in one place, however it is divided."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from builders import a_site_evaluation
from hypothesis import given
from hypothesis import strategies as st

from fluffle.sites import (
    MAX_REPORT_ITEMS,
    Pooling,
    SiteMetric,
    SiteReport,
    is_of_sites,
    over_sites,
    site_metric_in,
    within_room,
)

# Each site's values of one metric for its examples.
sites = st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), min_size=1, max_size=12)


def a_report(values: Sequence[float], pooling: Pooling = "mean", *, version: int = 3) -> SiteReport:
    """Return what a site reports that has measured these values on its examples."""
    squares = pooling == "root_mean"
    total = math.fsum(value * value if squares else value for value in values)
    metric = SiteMetric("mae", pooling, total, len(values))
    return SiteReport(1, version, len(values), (metric,))


@given(sites, st.randoms(use_true_random=False))
def test_the_mean_over_sites_is_that_of_all_their_data_in_any_order_and_grouping(
    values: list[list[float]], random: Random
) -> None:
    pooled = [value for site in values for value in site]
    shuffled = random.sample(list(enumerate(values)), len(values))
    halves = [part for site in values for part in (site[::2], site[1::2]) if part]

    found = over_sites({f"s{at}": a_report(site) for at, site in enumerate(values)})["mae"]
    in_another_order = over_sites({f"s{at}": a_report(site) for at, site in shuffled})["mae"]
    in_other_groups = over_sites({f"s{at}": a_report(site) for at, site in enumerate(halves)})["mae"]

    assert in_another_order == found
    expected = float(np.mean(np.array(pooled, np.float64)))
    scale = max(1.0, *map(abs, pooled))
    assert found.mean == pytest.approx(expected, abs=1e-6 * scale)
    assert in_other_groups.mean == pytest.approx(expected, abs=1e-6 * scale)


@given(sites)
def test_the_root_of_a_mean_is_that_of_all_data_too(values: list[list[float]]) -> None:
    pooled = np.array([value for site in values for value in site])

    found = over_sites({f"s{at}": a_report(site, "root_mean") for at, site in enumerate(values)})["mae"]

    assert found.pooling == "root_mean"
    assert found.mean == pytest.approx(math.sqrt(np.mean(pooled**2)), rel=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_worst_and_spread_are_those_of_the_sites_values(values: list[float]) -> None:
    found = over_sites({f"s{at:02}": a_report([value]) for at, value in enumerate(values)})["mae"]

    assert (found.lowest, found.highest) == (min(values), max(values))
    assert values[int(found.lowest_site[1:])] == found.lowest
    assert values[int(found.highest_site[1:])] == found.highest
    assert found.spread == pytest.approx(float(np.std(values)), abs=1e-6)
    assert found.sites == len(values)


def test_what_cannot_be_summed_up_is_the_mean_of_the_sites_by_examples_and_is_marked() -> None:
    reports = {
        "a": SiteReport(1, 3, 10, (SiteMetric("auc", "site_mean", 0.5 * 10, 10),)),
        "b": SiteReport(1, 3, 30, (SiteMetric("auc", "site_mean", 0.9 * 30, 30),)),
    }

    found = over_sites(reports)["auc"]

    assert found.pooling == "site_mean"
    assert found.mean == pytest.approx(0.8)
    assert (found.lowest_site, found.highest_site) == ("a", "b")


def test_a_metric_that_only_some_sites_can_sum_up_is_not_summed_up() -> None:
    reports = {
        "a": SiteReport(1, 3, 10, (SiteMetric("rmse", "root_mean", 40.0, 10),)),
        "b": SiteReport(1, 3, 10, (SiteMetric("rmse", "site_mean", 30.0, 10),)),
    }

    found = over_sites(reports)["rmse"]

    assert (found.pooling, found.mean) == ("site_mean", 2.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_and_in_no_mean(value: float) -> None:
    reports = {"a": a_report([1.0, 3.0]), "broken": a_report([value])}

    found = over_sites(reports)["mae"]

    assert found.not_finite == ("broken",)
    assert (found.mean, found.lowest, found.highest, found.spread, found.sites) == (2.0, 2.0, 2.0, 0.0, 1)


def test_where_no_site_has_a_finite_value_there_is_no_mean() -> None:
    found = over_sites({"a": a_report([math.nan])})["mae"]

    assert math.isnan(found.mean)
    assert math.isnan(found.spread)
    assert (found.lowest_site, found.highest_site, found.sites) == ("", "", 0)


def test_a_class_that_a_site_does_not_have_neither_counts_nor_is_missing() -> None:
    reports = {
        "a": SiteReport(1, 3, 10, (SiteMetric("recall/2", "mean", 3, 4),)),
        "without": SiteReport(1, 3, 10, (SiteMetric("recall/2", "mean", 0, 0),)),
    }

    found = over_sites(reports)["recall/2"]

    assert (found.mean, found.lowest_site, found.sites, found.not_finite) == (0.75, "a", 1, ())


def test_a_record_keeps_the_newest_reports_that_it_has_room_for() -> None:
    each = a_report([1.0]).items
    fitting = MAX_REPORT_ITEMS // each
    reports = {f"s{version}": a_report([1.0], version=version) for version in range(fitting + 3)}

    left, dropped = within_room(reports)

    assert dropped == ["s0", "s1", "s2"]
    assert len(left) == fitting
    assert within_room(left) == (left, [])


def test_a_metric_over_sites_is_known_by_what_stands_before_its_name() -> None:
    names = ["accuracy", "sites.accuracy", "worst.f1/0", "spread.mae", "website.hits"]

    assert [is_of_sites(name) for name in names] == [False, True, True, True, False]
    assert [site_metric_in(name) for name in names[1:4]] == ["accuracy", "f1/0", "mae"]


def test_an_evaluation_has_an_id_that_says_of_which_version_it_is() -> None:
    found = a_site_evaluation("ward-3", 7)

    assert found.id == "ward-3/2/7"
    assert replace(found, tuned=found.metrics).id == "ward-3/2/7/tuned"
