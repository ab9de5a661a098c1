"""The codec topk: only the largest elements, each with its distance from the one before. Pure.

It is for deltas, and for senders that keep what is left out and send it later (error feedback). Source:
Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory" (2018, arXiv 1809.07599), Algorithm 1.

The payload has the number of entries (4 bytes), their values as float32, and then a byte for each gap, which
is how many elements are left out before the entry. 255 says that 255 are left out and that the gap goes on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fluffle.codecs.compressed import CompressedVector, require_length
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE, largest_magnitude, matching_blocks, scratch_block

ESCAPE: Final = 255
# The threshold of a large vector is estimated from a sample of this size.
SAMPLE: Final = 65_536
# Aim at more entries than are wanted, so that the estimate rarely gives too few.
SURPLUS: Final = 1.2

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class TopKVector(CompressedVector):
    """The largest elements of a vector; the others are zero."""

    @property
    def values(self) -> Vector:
        """The elements that are there, as a view of the bytes."""
        return np.frombuffer(self.payload, "<f4", count=self.count, offset=4)

    @property
    def count(self) -> int:
        """The number of entries that the bytes announce."""
        return int.from_bytes(self.payload[:4], "little")

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """The gaps, as a view of the bytes."""
        return np.frombuffer(self.payload, np.uint8, offset=4 + 4 * self.count)

    def magnitude_bound(self) -> float:
        """Return the largest absolute value, NaN if there is one."""
        return largest_magnitude(self.values)

    def blocks(self) -> Iterator[Vector]:
        """Yield the vector in blocks, with its zeros."""
        indices = np.concatenate([np.empty(0, np.intp), *(found for found, _ in self._entries())])
        values, scratch = self.values, scratch_block(self.size)
        for start in range(0, self.size, BLOCK_SIZE):
            block = scratch[: min(BLOCK_SIZE, self.size - start)]
            block[:] = 0.0
            first, last = np.searchsorted(indices, (start, start + block.size))
            block[indices[first:last] - start] = values[first:last]
            yield block

    def add_to(self, total: Vector, scale: float) -> None:
        """Add scale * vector to `total` in place: to the elements that are there."""
        self.require_size_of(total)
        for indices, values in self._entries():
            total[indices] += values * np.float32(scale)

    def _entries(self) -> Iterator[tuple[Indices, Vector]]:
        """Yield the indices and values of the entries, some thousands at a time."""
        codes, values = self.codes, self.values
        skipped = done = 0
        for start in range(0, codes.size, BLOCK_SIZE):
            some = codes[start : start + BLOCK_SIZE]
            left_out = np.cumsum(some, dtype=np.intp) + skipped
            skipped = int(left_out[-1])
            ends = left_out[some != ESCAPE]
            yield ends + np.arange(done, done + ends.size), values[done : done + ends.size]
            done += ends.size


@dataclass(frozen=True, slots=True)
class TopK:
    """The codec that sends the largest `share` of a vector's elements."""

    share: float

    def most_entries(self, size: int) -> int:
        """Return how many elements are sent at most: at least one, if there is one."""
        return min(size, math.ceil(size * self.share))

    def most_bytes(self, size: int) -> int:
        """Return how many bytes a vector takes at most."""
        return 4 + 5 * self.most_entries(size) + size // ESCAPE

    def of(self, vector: Vector, random: np.random.Generator) -> TopKVector:
        """Return the largest elements of a vector; a NaN is as large as can be."""
        indices = _largest(vector, self.most_entries(vector.size), random)
        gaps = np.diff(indices, prepend=-1) - 1
        codes = np.full(indices.size + int((gaps // ESCAPE).sum()), ESCAPE, np.uint8)
        codes[np.cumsum(gaps // ESCAPE + 1) - 1] = gaps % ESCAPE
        parts = (np.array([indices.size], "<u4"), vector[indices].astype("<f4"), codes)
        return TopKVector(vector.size, memoryview(b"".join(part.tobytes() for part in parts)))

    def read(self, size: int, payload: memoryview) -> TopKVector:
        """Return the vector in these bytes; raises ValueError when they are none."""
        vector, most = TopKVector(size, payload), self.most_entries(size)
        count = vector.count
        if count > most:
            raise ValueError(f"it has {count} entries, and {self.share:g} of {size} are at most {most}")
        if len(payload) < 4 + 4 * count:
            require_length(4 + 5 * count, payload)
        codes = vector.codes
        ends = int(np.count_nonzero(codes != ESCAPE))
        if ends != count or (codes.size and codes[-1] == ESCAPE):
            raise ValueError(f"it has {count} values, but {ends} gaps that end")
        # The gaps are never negative, so that the entries ascend.
        if (last := int(codes.sum(dtype=np.uint64)) + count - 1) >= size:
            raise ValueError(f"its last entry is element {last} of {size}")
        return vector


def _largest(vector: Vector, count: int, random: np.random.Generator) -> Indices:
    """Return the indices of the `count` largest magnitudes, ascending, without zeros."""
    if vector.size > SAMPLE:
        sample = np.abs(vector[random.integers(0, vector.size, SAMPLE)])
        wanted = min(SAMPLE, math.ceil(SAMPLE * SURPLUS * count / vector.size))
    else:
        sample, wanted = np.abs(vector), count
    found = _not_below(vector, _threshold(sample, wanted))
    if found.size < count and vector.size > SAMPLE:
        found = _not_below(vector, _threshold(np.abs(vector), count))
    if found.size > count:
        found = np.sort(found[np.argpartition(np.abs(vector[found]), -count)[-count:]])
    return found


def _threshold(magnitudes: Vector, count: int) -> np.float32:
    """Return the smallest of the `count` largest; numpy counts NaN as the largest of all."""
    if not count:
        return np.float32(np.inf)
    magnitudes.partition(magnitudes.size - count)
    return np.float32(magnitudes[magnitudes.size - count])


def _not_below(vector: Vector, threshold: np.float32) -> Indices:
    """Return the indices of the magnitudes that are not below a threshold, and not zero."""
    found = [np.empty(0, np.intp)]
    for number, (block,) in enumerate(matching_blocks(vector)):
        magnitudes = np.abs(block)
        indices = np.flatnonzero(~(magnitudes < threshold) & (magnitudes != 0))
        found.append(indices + number * BLOCK_SIZE)
    return np.concatenate(found)
