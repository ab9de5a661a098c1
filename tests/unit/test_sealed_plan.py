"""The range of a sealed sum: counted from clips and weights, and never reached if all workers are honest."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.errors import ConfigError
from fluffle.model import Layout
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.sealed.part import SealedPart, sealed_part
from fluffle.sealed.plan import SealedPlan, SealedState
from fluffle.sealed.public_file import SealedPublic, read_public, write_public

KEY = "0123456789abcdef" * 2


def a_plan(clip: float = 0.5, greatest: int = 64, buffer_size: int = 4) -> SealedPlan:
    return SealedPlan(key=KEY, clip=clip, greatest=greatest, buffer_size=buffer_size)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
@settings(max_examples=50)
def test_no_honest_sum_is_above_its_bound_whatever_is_refreshed(seed: int, clip: float) -> None:
    random, plan = np.random.default_rng(seed), a_plan(clip)
    state, sums = SealedState(), np.zeros(8)
    base, largest_then = state, 0.0

    for _ in range(300):
        weight = int(random.integers(8, 65))
        if not state.has_room(plan, weight):
            break
        sums += weight * random.choice([-clip, 0.3 * clip, clip], 8, p=[0.1, 0.3, 0.6])
        state = state.with_updates(weight)
        if random.random() < 0.05:
            base, largest_then = state, float(np.abs(sums).max())
        if random.random() < 0.05 and base.refreshes == state.refreshes:
            state = state.refreshed(largest_then, base.weights)

        assert np.abs(sums).max() <= state.bound(plan) <= LARGEST_VALUE + 1
    assert state.weights >= state.counted_from


def test_a_refresh_is_wanted_when_half_of_the_room_is_used_and_then_later() -> None:
    plan = a_plan(clip=LARGEST_VALUE / 64 / 10)
    state = SealedState()
    wanted = []

    for _ in range(9):
        state = state.with_updates(64)
        wanted.append(state.wants_refresh(plan))

    assert wanted == [False] * 5 + [True] * 4 or wanted == [False] * 4 + [True] * 5
    assert not state.has_room(plan, 2 * 64)
    after = state.refreshed(LARGEST_VALUE / 10, state.weights)
    assert after.has_room(plan, 8 * 64)
    assert not after.wants_refresh(plan)
    assert after.with_updates(5 * 64).wants_refresh(plan)


def test_updates_that_came_after_the_refreshed_version_still_count() -> None:
    plan = a_plan(clip=1.0)
    at_base = SealedState().with_updates(640)
    now = at_base.with_updates(64)

    after = now.refreshed(10.0, at_base.weights)

    assert after.bound(plan) == pytest.approx(74.0, abs=0.01)
    assert after.refreshes == 1


def test_a_sum_is_full_when_no_refresh_makes_room() -> None:
    plan = a_plan(clip=1.0)

    assert not SealedState(largest=LARGEST_VALUE - 300).is_full(plan)
    assert SealedState(largest=LARGEST_VALUE - 200).is_full(plan)


def a_layout() -> Layout:
    return Layout.of(
        {
            "body/kernel": np.zeros((2, 3), np.float32),
            "head/kernel": np.zeros((3, 2), np.float32),
            "norm/mean": np.zeros(5, np.float32),
            "head/bias": np.zeros(2, np.float32),
            "tail": np.zeros(4, np.float32),
        },
        {"norm/mean": "statistic"},
    )


def test_the_tensors_that_match_a_pattern_are_sealed_and_the_others_are_not() -> None:
    layout, vector = a_layout(), np.arange(18, dtype=np.float32)

    part = sealed_part(layout, ("head/*",))

    assert part == SealedPart(18, ((6, 14),))
    assert (part.size, part.open_size) == (8, 10)
    assert part.sealed_of(vector).tolist() == list(range(6, 14))
    assert part.open_of(vector).tolist() == [*range(6), *range(14, 18)]


def test_without_patterns_the_whole_vector_is_sealed() -> None:
    part = sealed_part(a_layout(), ())

    assert (part.ranges, part.open_ranges, part.open_size) == (((0, 18),), (), 0)


def test_several_sealed_ranges_are_added_to_where_they_are() -> None:
    part = sealed_part(a_layout(), ("*/kernel", "tail"))
    vector = np.ones(18, np.float32)

    part.add_sealed(vector, np.arange(part.size, dtype=np.float64))

    assert part.ranges == ((0, 12), (14, 18))
    assert part.open_ranges == ((12, 14),)
    assert vector.tolist() == [*range(1, 13), 1, 1, *range(13, 17)]


def test_a_public_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "sealed.public"

    write_public(path, SealedPublic(KEY))

    assert read_public(path) == SealedPublic(KEY)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x5e\xa1\x10 not text", "is no public file of a sealed federation"),
        (b"[]", "give the sealed.public that `fluffle keys sealed` has made"),
        (b'{"format": "another"}', "is no public file"),
    ],
)
def test_another_file_than_the_public_one_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "sealed.secret"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=problem):
        read_public(path)


def test_a_public_file_of_other_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sealed.public"
    write_public(path, SealedPublic(KEY))
    path.write_text(path.read_text().replace("4096", "8192"))

    with pytest.raises(ConfigError, match="degree 8192, and this Fluffle seals with 4096"):
        read_public(path)


def test_a_public_file_with_another_word_for_its_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sealed.public"
    write_public(path, SealedPublic(KEY))
    path.write_text(path.read_text().replace(KEY, "../../etc"))

    with pytest.raises(ConfigError, match="is damaged: field key"):
        read_public(path)
