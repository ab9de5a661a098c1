"""The pictures of `fluffle privacy plan`."""

import re

from hypothesis import given
from hypothesis import strategies as st

from fluffle_cli.privacy.pictures import HEIGHT, WIDTH, Picture


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9)), min_size=1, max_size=20),
    st.lists(st.tuples(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9)), min_size=1, max_size=20),
)
def test_curves_stay_inside_of_their_picture(
    one: list[tuple[float, float]], other: list[tuple[float, float]]
) -> None:
    drawn = Picture("both", "x", (("one", one), ("other", other)), dot=one[0]).drawn()

    places = [place for points in re.findall('points="([^"]*)"', drawn) for place in points.split()]
    assert len(places) == len(one) + len(other) + 4
    for place in places:
        x, y = map(float, place.split(","))
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
