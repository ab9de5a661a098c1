"""Numbers and names as people read them, and JSON that every program can read."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_cli.plain_json import as_text, finite
from fluffle_cli.words import count, duration, in_a_row, number, percent

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (12.5, "12.5000"),
        (0.000012345, "1.234e-05"),
        (123456.7, "1.235e+05"),
        (math.nan, "NaN"),
        (-math.inf, "-infinity"),
    ],
)
def test_a_metric_has_four_digits_and_what_is_not_finite_is_said_so(value: float, said: str) -> None:
    assert number(value) == said


@given(FLOATS)
def test_every_number_has_a_short_text_that_is_near_it(value: float) -> None:
    said = number(value)

    assert len(said) < 12
    # Rounded up, the very largest would be infinite.
    if abs(value) < 1e308:
        assert float(said) == pytest.approx(value, rel=1e-3, abs=5e-5 if abs(value) >= 1e-3 else 0)


@given(st.floats(0, 1))
def test_a_share_above_nothing_is_never_said_to_be_nothing(share: float) -> None:
    said = percent(share)

    assert said.endswith(" %")
    assert (float(said.removesuffix(" %")) == 0) == (share == 0)


def test_counts_times_and_names_read_well() -> None:
    assert [count(each, "update") for each in (0, 1, 2, 1234)] == [
        *("0 updates", "1 update", "2 updates", "1,234 updates")
    ]
    assert [duration(each) for each in (0.4, 119, 120, 7199, 7200)] == [
        *("0 s", "119 s", "2 min", "120 min", "2 h")
    ]
    assert in_a_row(["a"]) == "a"
    assert in_a_row(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@given(VALUES)
def test_whatever_numbers_stand_in_a_value_its_text_is_json(value: Any) -> None:
    for text in (as_text(value), as_text(value, is_short=True), as_text(value, indent=2)):
        json.loads(text, parse_constant=pytest.fail)


@given(FLOATS)
def test_a_number_is_read_back_from_json_as_it_was(value: float) -> None:
    read = float(json.loads(as_text({"metrics": [value]}))["metrics"][0])

    assert read == value or (math.isnan(read) and math.isnan(value))


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_what_json_knows_stays_as_it_is(value: dict[str, Any]) -> None:
    assert finite(value) == value
