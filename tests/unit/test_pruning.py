"""Magnitude pruning: how many elements become zero, and which."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from fluffle_worker.pruning import pruned

kernels = arrays(np.float32, array_shapes(min_dims=1, max_dims=4), elements=st.floats(-8.0, 8.0, width=32))


@given(kernel=kernels, sparsity=st.floats(0.01, 0.99))
def test_the_smallest_become_zero_and_the_others_stay(kernel: NDArray[np.float32], sparsity: float) -> None:
    before = kernel.copy()

    result = pruned(kernel, sparsity)

    np.testing.assert_array_equal(kernel, before)
    assert (result.shape, result.dtype) == (kernel.shape, kernel.dtype)
    is_kept = np.asarray(result != 0)
    np.testing.assert_array_equal(result[is_kept], kernel[is_kept])
    gone = np.abs(kernel)[(result == 0) & (kernel != 0)]
    assert not gone.size or not is_kept.any() or gone.max() <= np.abs(kernel)[is_kept].min()
    fewest = math.floor(sparsity * kernel.size + 1e-9)
    # What was zero before may be among those that become zero, or not.
    assert fewest <= np.count_nonzero(result == 0) <= fewest + np.count_nonzero(kernel == 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_stay_what_they_are(dtype: type[np.generic]) -> None:
    kernel = np.array([[1, -3], [0.5, 2]]).astype(dtype)

    result = pruned(kernel, 0.5)

    assert result.dtype == kernel.dtype
    assert result.astype(np.float32).tolist() == [[0, -3], [0, 2]]


def test_a_share_that_is_meant_as_a_whole_number_is_one() -> None:
    assert np.count_nonzero(pruned(np.arange(1, 101, dtype=np.float32), 0.29) == 0) == 29
