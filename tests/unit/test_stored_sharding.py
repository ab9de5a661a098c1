"""Which files, row groups or rows a site reads of a data set that several share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_worker.data.stored.sharding import BALANCED, row_ranges, whole_units

sizes = st.lists(st.integers(0, 1000), min_size=1, max_size=40)


@given(sizes=sizes, count=st.integers(1, 8))
def test_whole_units_belong_to_one_site_each_and_none_has_far_more_than_others(
    sizes: list[int], count: int
) -> None:
    sites = [whole_units(sizes, index=index, count=count) for index in range(count)]

    if None in sites:
        assert all(units is None for units in sites)
        return
    own = [units for units in sites if units is not None]
    assert sorted(unit for units in own for unit in units) == list(range(len(sizes)))
    assert max(sum(sizes[unit] for unit in units) for units in own) * count <= BALANCED * sum(sizes)


@given(sizes=sizes, count=st.integers(1, 8))
def test_ranges_of_rows_cover_each_row_once_and_differ_by_one_row_at_most(
    sizes: list[int], count: int
) -> None:
    sites = [row_ranges(sizes, index=index, count=count) for index in range(count)]

    rows = [(unit, row) for ranges in sites for unit, begin, end in ranges for row in range(begin, end)]
    lengths = [sum(end - begin for _, begin, end in ranges) for ranges in sites]
    assert rows == [(unit, row) for unit, size in enumerate(sizes) for row in range(size)]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("sizes", "units"),
    [([5, 5, 5, 5], [0, 2]), ([10, 1], None), ([5], None), ([6, 5, 4, 4, 5, 6], [0, 1, 2])],
)
def test_files_are_not_cut_where_they_balance(sizes: list[int], units: list[int] | None) -> None:
    assert whole_units(sizes, index=0, count=2) == units
