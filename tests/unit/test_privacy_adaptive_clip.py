"""A clip that follows the norms of updates, and what that costs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import ConfigError
from fluffle.privacy.adaptive_clip import LEAST, MOST, count_noise, next_clip, noisy_share, updates_multiplier


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_goes_to_the_median_of_the_norms(start: float) -> None:
    random, clip, buffer_size = np.random.default_rng(2), start, 20
    noise = count_noise(1.2, buffer_size)

    clips = []
    for _ in range(400):
        fitting = int(np.sum(random.lognormal(math.log(3.0), 0.5, buffer_size) <= clip))
        clip = next_clip(
            clip, noisy_share(fitting, buffer_size, buffer_size, noise, float(random.standard_normal()))
        )
        clips.append(clip)

    assert np.median(clips[200:]) == pytest.approx(3.0, rel=0.1)
    assert max(clips[200:]) < 1.5 * min(clips[200:])


@given(st.floats(0.1, 20.0), st.integers(1, 1000))
def test_the_noise_of_count_and_updates_together_is_as_private_as_asked(
    multiplier: float, buffer_size: int
) -> None:
    count_std = count_noise(multiplier, buffer_size)

    of_updates = updates_multiplier(multiplier, count_std)

    # Both are Gaussian, and the squares of their mu add up; a worker changes the count by one half.
    assert (1 / of_updates) ** 2 + (0.5 / count_std) ** 2 == pytest.approx((1 / multiplier) ** 2)
    assert multiplier < of_updates < 1.16 * multiplier


def test_noise_of_the_count_that_would_spend_the_budget_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be more than 1, not 0\.5"):
        updates_multiplier(2.0, 0.5)
    with pytest.raises(ConfigError, match="must be more than 1, not 1"):
        updates_multiplier(2.0, 1.0)


@given(st.integers(0, 50), st.floats(-9.0, 9.0), st.floats(0.1, 20.0))
def test_a_share_is_between_none_and_all_and_has_no_digits_to_read(
    fitting: int, normal: float, count_std: float
) -> None:
    share = noisy_share(fitting, 50, 50, count_std, normal)

    assert 0.0 <= share <= 1.0
    assert share * 50 * 1024 == pytest.approx(round(share * 50 * 1024), abs=1e-6)
    assert noisy_share(fitting, 50, 50, count_std, 0.0) == fitting / 50


def test_what_is_missing_in_a_buffer_counts_as_one_half() -> None:
    assert noisy_share(0, 0, 8, 1.0, 0.0) == 0.5
    assert noisy_share(2, 2, 8, 1.0, 0.0) == (2 + 6 / 2) / 8


def test_a_clip_has_an_end_in_both_directions() -> None:
    assert next_clip(LEAST, 1.0) == LEAST
    assert next_clip(MOST, 0.0) == MOST


def test_the_clip_moves_as_in_the_paper() -> None:
    assert next_clip(2.0, 0.5) == 2.0
    assert next_clip(2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.1))
    assert next_clip(2.0, 0.0) == pytest.approx(2.0 * math.exp(0.1))
