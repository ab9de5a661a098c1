"""What collects the updates of one buffer: a running sum, or a stack of the vectors themselves. Pure.

`count` is the number of updates since the last step, `factor` and `divisor` are the sums of theirs, and
`staleness` is the greatest of theirs.
An accumulator is frozen: `adding` returns one that holds one more update, and `close` turns what is held into
the buffer's delta. Both may overwrite the arrays of the accumulator that they are called on, as JAX does with
a donated buffer. An update's vector is only read; it may be a view of a message's bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, matching_blocks


@dataclass(frozen=True, slots=True)
class Weight:
    """What one update counts in its buffer.

    `factor` multiplies the vector in a weighted sum, and `divisor` is what the update adds to the number that
    the sum is divided by. `discount`, in (0, 1], is the part of both that follows from its staleness and not
    from its examples. `mixing`, in (0, 1], is how far the update alone moves the statistics towards its own.
    `staleness` is that of the update. `scale` is what its vector is multiplied by besides, so that it is as
    long as one of the usual number of local steps; 1 where deltas are not normalised.
    """

    factor: float
    divisor: float
    discount: float
    mixing: float
    staleness: int = 0
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class RunningSum:
    """The weighted sum of the vectors: memory does not grow with the number of updates."""

    total: Vector | None = None
    factor: float = 0.0
    divisor: float = 0.0
    count: int = 0
    staleness: int = 0

    def adding(self, vector: CompressedVector, weight: Weight) -> "RunningSum":
        """Return a sum of one more update, whose factor is rounded once, to float32."""
        total = np.zeros(vector.size, np.float32) if self.total is None else self.total
        vector.add_to(total, weight.factor * weight.scale)
        factor = self.factor + float(np.float32(weight.factor))
        staleness = max(self.staleness, weight.staleness)
        return RunningSum(total, factor, self.divisor + weight.divisor, self.count + 1, staleness)

    def close(self) -> Vector:
        """Return the delta, the sum divided by the divisors' sum. Raises ValueError without an update."""
        if self.total is None:
            raise NOTHING_HELD
        if self.divisor != 1:
            np.divide(self.total, np.float32(self.divisor), out=self.total)
        return self.total


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The vectors themselves, compressed as they came, for a rule that compares them element by element.

    `reduce` turns float64 [count, elements] into float64 [elements]; it may overwrite its argument.
    """

    reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    vectors: tuple[CompressedVector, ...] = ()
    discounts: tuple[float, ...] = ()
    factor: float = 0.0
    divisor: float = 0.0
    staleness: int = 0

    @property
    def count(self) -> int:
        """The number of updates."""
        return len(self.vectors)

    def adding(self, vector: CompressedVector, weight: Weight) -> "Stack":
        """Return a stack of one more update; its bytes are copied, since the message's own are released."""
        return Stack(
            self.reduce,
            (*self.vectors, vector.owned()),
            (*self.discounts, weight.discount * weight.scale),
            self.factor + weight.factor,
            self.divisor + weight.divisor,
            max(self.staleness, weight.staleness),
        )

    def close(self) -> Vector:
        """Return the delta that the rule makes of the discounted vectors, block by block.

        Raises ValueError when the stack holds no update.
        """
        if not self.vectors:
            raise NOTHING_HELD
        size = self.vectors[0].size
        delta = np.empty(size, np.float32)
        stacked = np.empty((self.count, min(size, BLOCK_SIZE)))
        walks = zip(*(vector.blocks() for vector in self.vectors), strict=True)
        for (part,), blocks in zip(matching_blocks(delta), walks, strict=True):
            rows = stacked[:, : part.size]
            for row, block, discount in zip(rows, blocks, self.discounts, strict=True):
                np.multiply(block, discount, out=row, dtype=np.float64)
            part[:] = self.reduce(rows)
        return delta


Accumulator = RunningSum | Stack
NOTHING_HELD = ValueError("an empty buffer makes no new model: fold an update first")
