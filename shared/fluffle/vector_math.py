"""Arithmetic on whole model vectors, in place and in blocks that stay in the cache. Pure.

A model may have a hundred million parameters, so nothing here makes a second vector of that size. Each
element is computed by itself, so the size of the blocks does not change the result.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector

# 256 KiB of float32: a few such blocks fit into the cache of one core.
BLOCK_SIZE = 65_536
# A power of two, of which a block has as many.
SUM_WIDTH = 1024


def matching_blocks(*vectors: Vector) -> Iterator[tuple[Vector, ...]]:
    """Yield vectors of one size together, as views of at most BLOCK_SIZE elements each.

    Raises ValueError before the first block when the sizes differ: numpy would broadcast a single element.
    """
    if len({vector.shape for vector in vectors}) != 1:
        shapes = ", ".join(str(vector.shape) for vector in vectors)
        raise ValueError(f"vectors of one model must have one shape, not {shapes}")
    for start in range(0, vectors[0].size, BLOCK_SIZE):
        yield tuple(vector[start : start + BLOCK_SIZE] for vector in vectors)


def side_by_side(vector: Vector, blocks: Iterable[Vector]) -> Iterator[tuple[Vector, Vector]]:
    """Yield parts of a vector with the blocks of another one of the same size."""
    start = 0
    for block in blocks:
        yield vector[start : start + block.size], block
        start += block.size


def scratch_block(size: int) -> Vector:
    """Return an uninitialized block for a vector of `size` elements."""
    return np.empty(min(size, BLOCK_SIZE), np.float32)


def add_scaled(total: Vector, vector: Vector, scale: float) -> None:
    """Add scale * vector to `total` in place; the scale is rounded once, to float32.

    `vector` is only read: it may be a view of a message's bytes. Product and sum are rounded one after the
    other, never fused, so that every machine gives the same bits.
    """
    factor, scratch = np.float32(scale), scratch_block(total.size)
    for sums, values in matching_blocks(total, vector):
        # A fresh update weighs 1 in FedBuff: one pass less, and the same bits.
        product = values if factor == 1 else np.multiply(values, factor, out=scratch[: values.size])
        np.add(sums, product, out=sums)


def largest_magnitude(vector: Vector) -> float:
    """Return the largest absolute value of a vector, NaN if it holds one."""
    largest = 0.0
    for (block,) in matching_blocks(vector):
        # NaN passes through numpy's max and min, but not through Python's.
        extreme = float(np.maximum(block.max(), -block.min()))
        if math.isnan(extreme):
            return extreme
        largest = max(largest, extreme)
    return largest


def inner_product(blocks: Iterable[Vector], vector: Vector) -> float:
    """Return the inner product of a vector, given in blocks, and another one of the same size.

    Every machine gives the same bits: products are rounded to float32, each block is summed up in an order of
    its own, and the blocks are added in float64. (The sums of BLAS differ from machine to machine, and those
    of numpy from version to version.)
    """
    scratch = scratch_block(vector.size)
    return sum(_product(part, block, scratch) for part, block in side_by_side(vector, blocks))


def squared_length(blocks: Iterable[Vector]) -> float:
    """Return the inner product of a vector, given in blocks, with itself; see `inner_product`."""
    scratch = scratch_block(BLOCK_SIZE)
    return sum(_product(block, block, scratch) for block in blocks)


def norm(vector: Vector) -> float:
    """Return the L2 norm of a vector; infinite where a square is too large for float32."""
    return math.sqrt(squared_length(block for (block,) in matching_blocks(vector)))


def norm_in_float64(blocks: Iterable[NDArray[np.floating]]) -> float:
    """Return the L2 norm of a vector, given in blocks, summed up in float64.

    Never by BLAS, whose sums differ from machine to machine: a successor must come to the same bits.
    """
    scratch = np.empty(BLOCK_SIZE, np.float64)
    total = 0.0
    for block in blocks:
        squares = scratch[: block.size]
        squares[:] = block
        total += float(np.sum(np.square(squares, out=squares)))
    return math.sqrt(total)


def cosine(blocks: Iterable[Vector], vector: Vector) -> float:
    """Return the cosine of the angle between a vector, given in blocks, and another one.

    It is 1 where one is zero, and where products are too large for float32. Summed up as in `inner_product`.
    """
    scratch = scratch_block(vector.size)
    dot = square = other = 0.0
    for part, block in side_by_side(vector, blocks):
        dot += _product(part, block, scratch)
        square += _product(block, block, scratch)
        other += _product(part, part, scratch)
    is_known = square and other and all(map(math.isfinite, (dot, square, other)))
    return dot / math.sqrt(square * other) if is_known else 1.0


def _product(one: Vector, other: Vector, scratch: Vector) -> float:
    # Infinity or NaN where a product is too large for float32: the caller asks.
    with np.errstate(over="ignore", invalid="ignore"):
        return _sum(np.multiply(one, other, out=scratch[: one.size]))


def _sum(values: Vector) -> float:
    """Sum up a block in float32: columns of a table from top to bottom, then half of them to the others."""
    rows = values.size // SUM_WIDTH
    sums = np.add.reduce(values[: rows * SUM_WIDTH].reshape(rows, SUM_WIDTH), axis=0)
    rest = values[rows * SUM_WIDTH :]
    np.add(sums[: rest.size], rest, out=sums[: rest.size])
    width = SUM_WIDTH
    while width > 1:
        width //= 2
        np.add(sums[:width], sums[width : 2 * width], out=sums[:width])
    return float(sums[0])
