"""What collects the updates of one buffer: a running sum, or a stack of the vectors themselves. Pure.

An accumulator is frozen: `adding` returns one that holds one more update, and `close` turns what is held into
the buffer's delta. Both may overwrite the arrays of the accumulator that they are called on, as JAX does with
a donated buffer. An update's vector is only read; it may be a view of a message's bytes.

`totals` are what the updates since the last step count together, and `sections` says the same of each run of
elements that the same updates have. The delta is 0 where there is no section: such an element does not move.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, matching_blocks
from fluffle_aggregator.private.clipped_sum import ClippedSum
from fluffle_aggregator.sealed.sealed_sum import SealedSum
from fluffle_aggregator.sections import Coverage, Section, Totals, Weight, overlaps

EMPTY = Coverage()
# Of fewer updates nobody can say which one is the outlier.
FEWEST_TO_COMPARE = 3


@dataclass(frozen=True, slots=True, eq=False)
class RunningSum:
    """The weighted sum of the vectors: memory does not grow with the number of updates."""

    total: Vector | None = None
    coverage: Coverage = EMPTY

    @property
    def totals(self) -> Totals:
        """What the updates count together."""
        return self.coverage.totals

    def adding(self, vector: CompressedVector, weight: Weight) -> "RunningSum":
        """Return a sum of one more update, whose factor is rounded once, to float32."""
        total = np.zeros(vector.size, np.float32) if self.total is None else self.total
        vector.add_to(total, weight.factor * weight.scale)
        factor = float(np.float32(weight.factor))
        one = Totals(factor, weight.divisor, weight.mixing, 1, weight.staleness)
        return RunningSum(total, self.coverage.adding(vector.start, one))

    def sections(self) -> list[Section]:
        """Return the sections of the model that the updates have."""
        return [] if self.total is None else self.coverage.sections(self.total.size)

    def close(self) -> Vector:
        """Return the delta, each element's sum divided by its divisors' sum.

        Raises ValueError without an update.
        """
        if self.total is None:
            raise NOTHING_HELD
        for section in self.sections():
            part = self.total[section.elements]
            if section.totals.divisor != 1:
                np.divide(part, np.float32(section.totals.divisor), out=part)
        return self.total


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The vectors themselves, compressed as they came, for a rule that compares them element by element.

    `reduce` turns float64 [count, elements] into float64 [elements]; it may overwrite its argument. An
    element that fewer than FEWEST_TO_COMPARE updates have does not move, unless the whole stack is smaller:
    a single update, which may be hostile, would decide about it.
    """

    reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    vectors: tuple[CompressedVector, ...] = ()
    discounts: tuple[float, ...] = ()
    coverage: Coverage = EMPTY

    @property
    def totals(self) -> Totals:
        """What the updates count together."""
        return self.coverage.totals

    def adding(self, vector: CompressedVector, weight: Weight) -> "Stack":
        """Return a stack of one more update; its bytes are copied, since the message's own are released."""
        one = Totals(weight.factor, weight.divisor, weight.mixing, 1, weight.staleness)
        return Stack(
            self.reduce,
            (*self.vectors, vector.owned()),
            (*self.discounts, weight.discount * weight.scale),
            self.coverage.adding(vector.start, one),
        )

    def sections(self) -> list[Section]:
        """Return the sections of the model that enough updates have."""
        if not self.vectors:
            return []
        found = self.coverage.sections(self.vectors[0].size)
        return [section for section in found if section.totals.count >= self._fewest]

    @property
    def left_out(self) -> int:
        """The number of elements, the first ones, that too few updates have."""
        sections = self.sections()
        return sections[0].start if sections else 0

    @property
    def _fewest(self) -> int:
        return min(FEWEST_TO_COMPARE, len(self.vectors))

    def close(self) -> Vector:
        """Return the delta that the rule makes of the discounted vectors, block by block.

        Raises ValueError when the stack holds no update.
        """
        if not self.vectors:
            raise NOTHING_HELD
        size, sections = self.vectors[0].size, self.sections()
        delta = np.zeros(size, np.float32)
        stacked = np.empty((len(self.vectors), min(size, BLOCK_SIZE)))
        walks = zip(*(vector.blocks() for vector in self.vectors), strict=True)
        for first, ((part,), blocks) in enumerate(zip(matching_blocks(delta), walks, strict=True)):
            rows = stacked[:, : part.size]
            for row, block, discount in zip(rows, blocks, self.discounts, strict=True):
                np.multiply(block, discount, out=row, dtype=np.float64)
            for number, elements in overlaps(sections, first * BLOCK_SIZE, part.size):
                has = [vector.start <= sections[number].start for vector in self.vectors]
                some = rows if all(has) else rows[has]
                part[elements] = self.reduce(some[:, elements])
        return delta


Accumulator = RunningSum | Stack | ClippedSum | SealedSum
NOTHING_HELD = ValueError("an empty buffer makes no new model: fold an update first")
