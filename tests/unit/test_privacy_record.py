"""What a record says of differential privacy: it is read as it was written, and faults are named."""

from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import pytest
from builders import a_version
from hypothesis import given
from hypothesis import strategies as st
from messages import rewritten, taken_apart, without
from privately import a_privacy_plan, a_private_version

from fluffle.errors import WireError
from fluffle.privacy.plan import NoisySum, Participation, PrivacyPlan, PrivacyState
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_record, encode_version

PLAN = a_privacy_plan(bands=3, separation=2)
STATE = PrivacyState(
    commitment="ab" * 32,
    drawn="cd" * 16,
    steps=7,
    last=(NoisySum(1, 6, "ef" * 16), NoisySum(2, 7, "cd" * 16)),
    participations={"w1": Participation(3, 7), "w2": Participation(1, 2)},
)
BODY = encode_version(replace(a_private_version(PLAN), privacy=STATE))


def row(body: bytes, field: str) -> list[Any]:
    found = taken_apart(body)[0][field]
    assert isinstance(found, list)
    return found


def read(body: bytes) -> ModelVersion:
    version = decode_record(body)
    assert isinstance(version, ModelVersion)
    return version


def test_plan_and_state_are_read_as_they_were_written() -> None:
    version = read(BODY)

    assert version.plan.privacy == PLAN
    assert version.privacy == STATE


def test_a_record_of_before_differential_privacy_has_none() -> None:
    before = encode_version(a_version())

    version = read(rewritten(without(before, "privacy"), plan=row(before, "plan")[:-1]))

    assert version.plan.privacy is None
    assert version.privacy is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epsilon": 0.0}, r"plan\.privacy\.epsilon: 0\.0 is not above 0"),
        ({"delta": 1.0}, r"plan\.privacy\.delta: 1\.0 is not above 0 and below 1"),
        ({"bands": 65}, r"plan\.privacy\.bands: 65 is not from 1 to 64"),
        ({"updates": 0}, r"plan\.privacy\.updates: 0 is not from 1"),
        (
            {"updates": 10**6, "separation": 2},
            r"plan\.privacy: updates times separation is more than 1,000,000",
        ),
        ({"count_std": 1e-9}, r"plan\.privacy: the noise of count_std alone spends more than epsilon"),
        ({"std": -1.0}, r"plan\.privacy\.std: -1\.0 is not more than 0"),
        ({"mechanism": "none"}, r"plan\.privacy\.mechanism: unknown 'none', known are central"),
    ],
)
def test_a_plan_that_cannot_be_is_named_by_its_field(changed: dict[str, object], says: str) -> None:
    fields = dict(zip(PrivacyPlan.__slots__, astuple(PLAN), strict=True))
    plan: list[Any] = [*row(BODY, "plan")[:-2], list({**fields, **changed}.values())]

    with pytest.raises(WireError, match=says):
        read(rewritten(BODY, plan=plan))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (1, "abc", r"privacy\.drawn: 'abc' is no hexadecimal number of whole bytes"),
        (2, -1, r"privacy\.steps: -1 is not from 0"),
        (3, [[1, 0, "ab"]] * 65, r"privacy\.last: 65 entries, at most 64 are allowed"),
        (4, {"a b": [1, 1]}, r"privacy\.participations: 'a b' is no name"),
        (4, {"w1": [1]}, r"privacy\.participations\[w1\]: expected a list of updates, last_step"),
    ],
)
def test_a_state_that_cannot_be_is_named_by_its_field(place: int, value: object, says: str) -> None:
    state = row(BODY, "privacy")
    state[place] = value

    with pytest.raises(WireError, match=says):
        read(rewritten(BODY, privacy=state))


@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_anything_else_is_a_wire_error_or_can_be_written_again(value: object) -> None:
    try:
        version = read(rewritten(BODY, privacy=value))
    except WireError:
        return

    encode_version(version)


@given(st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5))
def test_two_updates_of_a_worker_are_as_far_apart_as_the_state_says(
    separation: int, wants: list[bool], updates: int
) -> None:
    plan = a_privacy_plan(separation=separation, updates=updates, bands=2)
    state, taken = PrivacyState(commitment="ab"), []
    for step, wishes in enumerate(wants, 1):
        may = not state.is_spent("w", plan) and state.steps_to_wait("w", plan) == 0
        taken += [step] if wishes and may else []
        state = state.with_sum(NoisySum(1, step, "ab"), ("w",) if wishes and may else (), plan)

    assert len(taken) <= updates
    assert all(later - one >= separation for one, later in pairwise(taken))
    assert state.steps == len(wants)
    assert [each.version for each in state.last] == [len(wants)]
