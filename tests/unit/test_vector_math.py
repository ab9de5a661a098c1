"""Inner products: those of float64, in whatever blocks the vectors come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.codecs.int8 import GROUP
from fluffle.compression import compress, decompressed
from fluffle.vector_math import BLOCK_SIZE, inner_product, squared_length

SIZES = st.sampled_from([0, 1, GROUP + 7, BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE + GROUP + 1])


@given(SIZES, st.sampled_from(["float32", "bfloat16", "int8"]), st.integers(0, 9))
def test_inner_products_are_those_of_float64(size: int, codec: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    update = compress(codec, rng.standard_normal(size, np.float32), rng)
    step = rng.standard_normal(size, np.float32) * np.float32(1e-3)

    found = inner_product(update.blocks(), step), squared_length(update.blocks())

    one, other = decompressed(update).astype(np.float64), step.astype(np.float64)
    # What cancels in the sum is rounded too.
    near = 1e-6 * float(np.abs(one) @ np.abs(other))
    assert found[0] == pytest.approx(one @ other, rel=0, abs=near)
    assert found[1] == pytest.approx(one @ one, rel=1e-6)


def test_the_largest_values_that_are_admitted_do_not_overflow() -> None:
    largest = np.full(BLOCK_SIZE, 2.0**50, np.float32)

    assert inner_product([largest], largest) == squared_length([largest]) == 2.0**116
