"""The verdicts of `make bench-quick`: they can fail, and they fail for the right measurements."""

import math
from typing import Literal

import pytest

from benchmarks.verdicts import Verdict, exit_code


def ratio(measured: float) -> Verdict:
    return Verdict("ingest", "at least", 0.9, measured)


def memory(measured: float) -> Verdict:
    return Verdict("memory", "at most", 500, measured)


@pytest.mark.parametrize("verdict", [ratio(0.9), ratio(1.3), memory(500), memory(120)])
def test_what_reaches_its_demand_is_reached(verdict: Verdict) -> None:
    assert (str(verdict), verdict.fails, exit_code([verdict])) == ("reached", False, 0)


@pytest.mark.parametrize("verdict", [ratio(0.77), memory(574)])
def test_a_little_too_little_is_tolerated_and_said(verdict: Verdict) -> None:
    assert "tolerated" in str(verdict)
    assert exit_code([verdict]) == 0


@pytest.mark.parametrize("verdict", [ratio(0.76), ratio(0.0), memory(576), memory(5000)])
def test_more_than_fifteen_percent_short_fails(verdict: Verdict) -> None:
    assert "FALLS SHORT" in str(verdict)
    assert exit_code([ratio(2.0), verdict, memory(1)]) == 1


@pytest.mark.parametrize("sense", ["at least", "at most"])
def test_what_could_not_be_measured_fails(sense: Literal["at least", "at most"]) -> None:
    assert exit_code([Verdict("anything", sense, 1.0, math.nan)]) == 1


def test_no_measurement_at_all_is_no_success() -> None:
    assert exit_code([]) == 1
