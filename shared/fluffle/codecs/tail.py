"""A vector of which only the last elements are there, from a worker that trains the last layers alone. Pure.

In a message it is the vector of these elements alone, in any codec.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from fluffle.codecs.compressed import CompressedVector
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, scratch_block


@dataclass(frozen=True, slots=True)
class TailVector(CompressedVector):
    """The last elements of a vector of `size` elements; those before them count as zero."""

    known: CompressedVector

    @property
    def start(self) -> int:
        """See CompressedVector."""
        return self.size - self.known.size

    @property
    def tail(self) -> CompressedVector:
        """See CompressedVector."""
        return self.known

    def magnitude_bound(self) -> float:
        """See CompressedVector."""
        return self.known.magnitude_bound()

    def blocks(self) -> Iterator[Vector]:
        """Yield the vector in blocks, with its zeros."""
        scratch, coming, rest = scratch_block(self.size), self.known.blocks(), np.empty(0, np.float32)
        for first in range(0, self.size, BLOCK_SIZE):
            block = scratch[: min(BLOCK_SIZE, self.size - first)]
            filled = min(max(self.start - first, 0), block.size)
            block[:filled] = 0.0
            while filled < block.size:
                # The tail's blocks begin elsewhere: what is left of one goes into the next block here.
                rest = rest if rest.size else next(coming)
                some = min(rest.size, block.size - filled)
                block[filled : filled + some], rest = rest[:some], rest[some:]
                filled += some
            yield block

    def owned(self) -> Self:
        """See CompressedVector."""
        known = self.known.owned()
        return replace(self, payload=known.payload, known=known)

    def add_to(self, total: Vector, scale: float) -> None:
        """Add scale * vector to `total` in place: to the elements that are there."""
        self.require_size_of(total)
        self.known.add_to(total[self.start :], scale)


def tail_of(size: int, known: CompressedVector) -> CompressedVector:
    """Return the vector of `size` elements whose last ones are these; all of them may be."""
    return known if known.size == size else TailVector(size, known.payload, known)


def add_from(start: int, vector: CompressedVector, total: Vector, scale: float) -> None:
    """Add scale * vector to the elements of `total` from `start` on, in place."""
    if start <= vector.start:
        vector.add_to(total, scale)
        return
    vector.require_size_of(total)
    first = 0
    for block in vector.blocks():
        if (skipped := max(start - first, 0)) < block.size:
            sums = total[first + skipped : first + block.size]
            np.add(sums, block[skipped:] * np.float32(scale), out=sums)
        first += block.size
