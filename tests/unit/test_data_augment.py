"""Augmentation of tables and sequences: what must hold for any minibatch."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluffle_worker.data.augment import OF_VALUES, crop, mask, mixup, paired, spread_of, time_mask

Array = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)


def sequences(seed: int, rows: int = 5, steps: int = 20) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, steps, 2))


@given(seeds, st.sampled_from(sorted(OF_VALUES)))
def test_the_same_generator_gives_the_same_values_in_the_same_shape(seed: int, name: str) -> None:
    function, axes = OF_VALUES[name]
    x = sequences(seed) if axes == 3 else sequences(seed)[0]
    before = x.copy()

    first, again = (function(x, 0.5, spread_of(x), np.random.default_rng(seed)) for _ in range(2))

    assert np.array_equal(first, again)
    assert first.shape == x.shape
    assert not np.array_equal(first, x)
    assert np.array_equal(x, before)


@given(seeds, st.floats(0.05, 0.95))
def test_masked_values_are_the_means_of_the_training_rows_and_the_others_stay(
    seed: int, share: float
) -> None:
    x = sequences(seed, rows=50)[:, 0]
    spread = spread_of(x)

    masked = mask(x, share, spread, np.random.default_rng(seed))

    is_mean = masked == spread.mean
    assert np.array_equal(masked[~is_mean], x[~is_mean])


@given(seeds, st.floats(0.06, 0.9))
def test_a_mask_in_time_is_one_window_of_its_share(seed: int, share: float) -> None:
    x = sequences(seed)
    spread = spread_of(x)

    is_masked = (time_mask(x, share, spread, np.random.default_rng(seed)) == spread.mean).all(axis=2)

    assert (is_masked.sum(axis=1) == max(1, round(20 * share))).all()
    assert (np.abs(np.diff(is_masked, axis=1)).sum(axis=1) <= 2).all()


@given(seeds, st.floats(0.1, 0.95))
def test_a_crop_of_a_straight_line_is_a_flatter_line_within_it(seed: int, share: float) -> None:
    line = np.linspace(0, 1, 20).reshape(1, 20, 1).repeat(4, axis=0)

    cut = crop(line, share, spread_of(line), np.random.default_rng(seed))

    assert cut.min() >= 0
    assert cut.max() <= 1
    assert np.diff(cut[..., 0], axis=1) == pytest.approx(np.full((4, 19), share / 19))


@given(seeds, st.floats(0.1, 2))
def test_mixed_rows_train_as_mixed_labels_do(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    x, y, weights = rng.standard_normal((8, 3)), np.eye(4)[rng.integers(0, 4, 8)], rng.random(8)
    logs = rng.standard_normal((8, 4))

    mixed, partner, lam = mixup(x, alpha, rng)
    both, labels, both_weights = paired((x, y, weights), mixed, partner, lam)

    assert mixed == pytest.approx(lam[:, None] * x + (1 - lam[:, None]) * x[partner])
    assert np.array_equal(both, np.concatenate([mixed, mixed]))
    # The mean loss with predictions `logs` for each mixed row.
    soft = (lam * weights)[:, None] * y + ((1 - lam) * weights[partner])[:, None] * y[partner]
    of_both = -(labels * np.concatenate([logs, logs])).sum(axis=1) * both_weights
    assert of_both.mean() == pytest.approx(-(soft * logs).sum(axis=1).mean(), rel=1e-5, abs=1e-6)
