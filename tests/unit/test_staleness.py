"""Discounts by staleness: hand-computed numbers, properties, and the settings that make them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_aggregator.staleness import (
    DISCOUNTS,
    Discount,
    adaptive,
    constant,
    hinge,
    parse_discount,
    polynomial,
)

discounts = st.one_of(
    st.just(parse_discount("constant")),
    st.floats(0.0, 8.0).map(lambda exponent: parse_discount(f"polynomial:{exponent!r}")),
    st.tuples(st.floats(0.0, 1e6), st.integers(0, 1000)).map(
        lambda ab: parse_discount(f"hinge:{ab[0]!r}:{ab[1]}")
    ),
    st.integers(0, 1000).map(lambda tau_c: parse_discount(f"adaptive:{tau_c}")),
)


@pytest.mark.parametrize(
    ("setting", "staleness", "expected"),
    [
        ("constant", 0, 1.0),
        ("constant", 1000, 1.0),
        ("polynomial", 0, 1.0),
        ("polynomial", 3, 0.5),  # 1 / sqrt(4)
        ("polynomial", 15, 0.25),  # 1 / sqrt(16)
        ("polynomial:1", 3, 0.25),
        ("polynomial:2", 2, 1 / 9),
        ("polynomial:0", 7, 1.0),
        ("hinge", 4, 1.0),
        ("hinge", 5, 1 / 11),  # 10 * (5 - 4) + 1
        ("hinge", 6, 1 / 21),
        ("hinge:2", 6, 1 / 5),
        ("hinge:2:1", 3, 1 / 5),
        ("hinge:0.5:0", 2, 0.5),
        ("adaptive", 4, 1.0),
        ("adaptive", 5, 4 / 5),
        ("adaptive:10", 40, 1 / 4),
        ("adaptive:1", 3, 1 / 3),
        ("adaptive:0", 1, 1.0),
    ],
)
def test_a_discount_is_what_the_paper_says(setting: str, staleness: int, expected: float) -> None:
    discount = parse_discount(setting)

    counted = discount(staleness)

    assert counted == pytest.approx(expected, rel=1e-15)


@given(discounts)
def test_a_fresh_update_is_never_discounted(discount: Discount) -> None:
    fresh = 0

    counted = discount(fresh)

    assert counted == 1.0


@given(discounts, st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_discount_lies_in_0_to_1_and_never_increases_with_staleness(
    discount: Discount, staleness: int, later_by: int
) -> None:
    counted = discount(staleness)

    counted_later = discount(staleness + later_by)

    assert 0.0 < counted_later <= counted <= 1.0


@given(discounts, st.lists(st.integers(0, 100), min_size=1))
def test_a_discount_depends_on_the_staleness_alone(discount: Discount, asked_before: list[int]) -> None:
    first = [discount(staleness) for staleness in asked_before]

    again = [discount(staleness) for staleness in asked_before]

    assert again == first


@pytest.mark.parametrize("name", DISCOUNTS)
def test_an_update_from_the_future_is_a_broken_promise(name: str) -> None:
    discount = parse_discount(name)

    with pytest.raises(ValueError, match="staleness must be at least 0, not -1"):
        discount(-1)


def test_the_functions_can_be_called_without_a_setting() -> None:
    staleness = 8

    counted = [constant(staleness), polynomial(staleness, exponent=1.0), hinge(staleness, a=1.0, b=7)]

    assert counted == [1.0, 1 / 9, 1 / 2]


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("constant", "constant"),
        ("polynomial", "polynomial:0.5"),
        ("polynomial:2", "polynomial:2"),
        ("hinge", "hinge:10:4"),
        ("hinge:2.5", "hinge:2.5:4"),
        ("hinge:1:0", "hinge:1:0"),
        ("adaptive", "adaptive:4"),
    ],
)
def test_a_discount_shows_every_parameter(setting: str, shown: str) -> None:
    discount = parse_discount(setting)

    text = str(discount)

    assert text == shown


@given(st.integers(1, 100), st.integers(1, 1000), st.floats(0.01, 10.0))
def test_the_adaptive_discount_makes_the_delay_adaptive_step_of_the_paper(
    tau_c: int, staleness: int, eta: float
) -> None:
    # The paper's bound on the step, at the smoothness L where tau_C = 1 / (4 * L * eta).
    smoothness = 1 / (4 * eta * tau_c)

    step = eta * adaptive(staleness, tau_c=tau_c)

    assert step == pytest.approx(min(eta, 1 / (4 * smoothness * staleness)))


@given(discounts)
def test_what_a_discount_shows_is_the_setting_that_makes_it(discount: Discount) -> None:
    text = str(discount)

    again = parse_discount(text)

    assert again == discount


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("linear", "must be one of .*, not 'linear'"),
        ("", "must be one of .*, not ''"),
        ("Polynomial", "must be one of"),
        ("constant:1", "too many parameters"),
        ("polynomial:0.5:1", "too many parameters"),
        ("polynomial:", "exponent must be a number, not ''"),
        ("polynomial:half", "exponent must be a number, not 'half'"),
        ("polynomial:-1", "exponent must be finite and at least 0, not -1"),
        ("polynomial:nan", "exponent must be finite and at least 0, not nan"),
        ("polynomial:inf", "exponent must be finite and at least 0, not inf"),
        ("hinge:10:4.5", "b must be a whole number, not '4.5'"),
        ("adaptive:half", "tau_c must be a whole number, not 'half'"),
        ("hinge:10:-1", "b must be finite and at least 0, not -1"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_list_of_the_known_ones(setting: str, complaint: str) -> None:
    known = r"constant, polynomial\[:exponent\], hinge\[:a\]\[:b\], adaptive\[:tau_c\]"

    with pytest.raises(ValueError, match=complaint) as refused:
        parse_discount(setting)

    assert refused.match(known)
