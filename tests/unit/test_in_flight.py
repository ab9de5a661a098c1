"""How many updates a worker may have under way: enough to fill each version, and few in a pause."""

from dataclasses import replace

import pytest
from builders import a_version
from hypothesis import given
from hypothesis import strategies as st

from fluffle.plan import Plan
from fluffle.record import Contributor, ModelVersion
from fluffle_worker.base_version import most_in_flight


def a_record(per_version: int, updates: dict[str, int]) -> ModelVersion:
    given = {name: Contributor(updates=count) for name, count in updates.items()}
    return replace(a_version(plan=Plan(updates_per_version=per_version)), contributors=given)


@pytest.mark.parametrize(
    ("per_version", "updates", "most"),
    [
        (4, {}, 5),
        (4, {"w": 100}, 5),
        (4, {f"w{n}": 40 for n in range(9)} | {"w": 40}, 2),
        (1, {f"w{n}": 40 for n in range(9)} | {"w": 40}, 2),
        (100, {"w": 50, "other": 50}, 101),
        (10, {"w": 90, "other": 10}, 11),
        (10, {"w": 10, "other": 90}, 11),
        (10, {"w": 0, "a": 90, "b": 90, "c": 90, "d": 90}, 6),
    ],
)
def test_a_worker_may_have_twice_its_part_of_a_version_and_one_more(
    per_version: int, updates: dict[str, int], most: int
) -> None:
    assert most_in_flight(a_record(per_version, updates), "w") == most


@given(st.integers(1, 200), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 10**6)))
def test_together_the_workers_always_fill_a_version(per_version: int, updates: dict[str, int]) -> None:
    record = a_record(per_version, updates)

    most = [most_in_flight(record, name) for name in (updates or ["a"])]

    assert all(2 <= each <= per_version + 1 for each in most)
    assert sum(most) >= per_version
