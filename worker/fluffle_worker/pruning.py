"""Magnitude pruning: the smallest weights of a kernel become zero. Pure.

Source: Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks"
(2015, arXiv 1506.02626), its pruning step; nothing is trained afterwards.
"""

import math

import numpy as np
from numpy.typing import NDArray

# A share such as 0.29 of 100 lies a little below the number that is meant.
ROUNDING = 1e-9


def pruned(kernel: NDArray[np.generic], sparsity: float) -> NDArray[np.generic]:
    """Return a kernel whose elements of the smallest magnitude, a share of `sparsity`, are zero.

    `sparsity` is from 0 to 1, and the number of elements is rounded down. Of equal magnitudes, those that
    come first become zero.
    """
    count = math.floor(sparsity * kernel.size + ROUNDING)
    # In float32, since numpy cannot sort bfloat16.
    magnitudes = np.abs(kernel.astype(np.float32)).reshape(-1)
    result = kernel.copy()
    result.reshape(-1)[np.argsort(magnitudes, kind="stable")[:count]] = 0
    return result
