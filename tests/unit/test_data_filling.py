"""Missing values are filled column by column: as scikit-learn would, in little memory."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer

from fluffle_worker.data import DataSteps
from fluffle_worker.data.pipeline import take_steps
from fluffle_worker.data.rows import read_rows


def with_gaps(x: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.random.default_rng(0).random(x.shape) < 0.1, np.nan, x).astype(x.dtype)


@pytest.mark.parametrize("strategy", ["median", "mean", "most_frequent"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_filled_with_what_scikit_learn_would_fill_them_with(strategy: str, dtype: type) -> None:
    x = with_gaps(load_breast_cancer().data.astype(dtype).round(1))

    filled = take_steps(read_rows((x,)), DataSteps(impute=strategy), site=0).train.x

    # In float32 scikit-learn loses digits of a mean.
    np.testing.assert_allclose(filled, SimpleImputer(strategy=strategy).fit_transform(x), rtol=1e-5)


def test_filling_takes_one_copy_of_the_table_and_few_masks() -> None:
    rows = read_rows((with_gaps(np.random.default_rng(1).normal(size=(200_000, 25)).astype(np.float32)),))
    tracemalloc.start()
    try:
        take_steps(rows, DataSteps(), site=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # A mask has a quarter of the bytes of the table.
    assert peak < 2.25 * rows.x.nbytes
